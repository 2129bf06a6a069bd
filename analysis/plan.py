"""From a budget to a configuration, with the loss and the cost to expect; and the check run.

The configuration lies on the lines of :mod:`analysis.hyperparameters`, where the predicted cost is
the one asked for. What to expect of it is the surrogate's posterior there, with the noise of a new
measurement: its trend continues beyond the sweep with slopes and an irreducible level that are
themselves uncertain, so that the interval widens with the distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis.hyperparameters import FrontModel
from analysis.power_laws import ComputeLaw, fit_compute_law
from carbs.pareto import pareto_front
from carbs.space import AllowedPoints, FloatArray, LinearSpace, LogitSpace, LogSpace, Params

# Further out than this, the trend has been followed for longer than it was seen.
_FAR = 10.0
# Where the constraints forbid the configuration: how many near it are looked at, and how many
# decades of cost are as bad as a distance of one.
_N_NEAR, _COST_TOLERANCE = 4096, 0.1


@dataclass(frozen=True)
class Plan:
    """One run, before it is started.

    Attributes:
        params: the configuration.
        target_cost: what was asked for.
        extrapolation: ``target_cost`` over the sweep's dearest run.
        output, cost: medians of the predicted measurements.
        output_interval, cost_interval: where they are expected, at ``level``.
        warnings: what to know before betting on it.
    """

    params: Params
    target_cost: float
    extrapolation: float
    level: float
    output: float
    output_interval: tuple[float, float]
    cost: float
    cost_interval: tuple[float, float]
    warnings: tuple[str, ...]


def fit_front_law(front: FrontModel, n_resamples: int = 200) -> ComputeLaw:
    """The law of loss over cost, through the runs on the Pareto front.

    The cheapest run is on every front, however bad it is: only runs that do better than the one
    nearest the search centre count.

    Raises:
        ValueError: outputs to be maximised, or fewer than four such runs.
    """
    if front.direction == "maximize":
        raise ValueError("a scaling law needs a loss, but the outputs are to be maximized")
    measured = [observation for observation in front.observations if not observation.is_forecast]
    costs = np.array([observation.cost for observation in measured])
    losses = np.array([observation.output for observation in measured])
    Z = front.space.encode_all([observation.params for observation in measured])
    center_loss = losses[np.argmin(np.square(Z).sum(axis=1))]
    chosen = pareto_front(costs, losses)
    chosen = chosen[losses[chosen] <= center_loss]
    return fit_compute_law(costs[chosen], losses[chosen], n_resamples)


def plan(front: FrontModel, cost: float) -> Plan:
    """The best configuration for a cost, and what to expect of it.

    Args:
        front: from :func:`analysis.hyperparameters.fit_front`.
        cost: of the run, in the sweep's unit.
    """
    z = _at_cost(front, cost)[None, :]
    tail = (1 - front.level) / 2
    levels = (tail, 0.5, 1 - tail)
    sign = 1.0 if front.direction == "minimize" else -1.0
    low, middle, high = np.sort(sign * front.surrogate.output_quantiles(z, levels)[0])
    low_cost, median_cost, high_cost = front.surrogate.cost_quantiles(z, levels)[0]
    dearest = max(observation.cost for observation in front.observations)
    return Plan(
        params=front.space.decode(z[0]),
        target_cost=cost,
        extrapolation=cost / dearest,
        level=front.level,
        output=float(middle),
        output_interval=(float(low), float(high)),
        cost=float(median_cost),
        cost_interval=(float(low_cost), float(high_cost)),
        warnings=_warnings(front, z[0], cost / dearest),
    )


def _at_cost(front: FrontModel, cost: float) -> FloatArray:
    """The point on the front's lines whose predicted cost comes nearest, shape ``(d,)``.

    Where the constraints do not allow it: the nearest to it, in place and predicted cost, that they
    do allow, of many around it and on the lines.
    """
    grid = math.log10(cost) + np.linspace(-1.5, 1.0, 251)
    points = np.array([front.best_at(log10_cost) for log10_cost in grid])
    predicted, _ = front.surrogate.log_cost(points)
    z = np.asarray(points[int(np.argmin(np.abs(predicted - math.log(cost))))])
    if front.space.allows(front.space.decode(z)):
        return z
    rng = np.random.default_rng(0)
    steps = rng.standard_normal((_N_NEAR, len(z))) * (rng.random((_N_NEAR, len(z))) < 0.5)
    near = front.space.snap(z + 10 ** rng.uniform(-2.0, 0.3, size=(_N_NEAR, 1)) * steps)
    candidates = np.concatenate([near, points, front.space.center[None, :]])
    off = np.abs(front.surrogate.log_cost(candidates)[0] - math.log(cost)) / math.log(10)
    distances = np.linalg.norm(candidates - z, axis=1) + off / _COST_TOLERANCE
    nearest = AllowedPoints(front.space).first(candidates, np.argsort(distances, kind="stable"), 1)
    return np.asarray(candidates[nearest[0]])


def _warnings(front: FrontModel, z: FloatArray, extrapolation: float) -> tuple[str, ...]:
    found = []
    if extrapolation > _FAR:
        found.append(f"{extrapolation:.0f} times the sweep's dearest run: check on the way there")
    probability = float(front.surrogate.success_probability(z[None, :])[0])
    if probability < 0.9:
        found.append(f"the run is expected to fail with probability {1 - probability:.0%}")
    params = front.space.decode(z)
    for param in front.space.params:
        if isinstance(param.space, (LinearSpace, LogSpace, LogitSpace)) and param.name in params:
            value = params[param.name]
            if value in param.space.limits():
                found.append(f"{param.name} = {value:g} lies on its bound: widen it")
    return tuple(found)
