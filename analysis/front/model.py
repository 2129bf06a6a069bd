"""What a sweep says of the best configuration at each cost: the front, drawn many times.

Notation
--------
c        scale: log10 of what a cost exceeds the overhead by
         (:mod:`carbs.analysis.front.response_surface`)
z        basic coordinates of a configuration, shape ``(d,)``
s        one of S bowls drawn from the response surface's posterior

The optimum at a cost is not read off the few runs that happen to lie on the front. Bowls are drawn
from the posterior, and each draw says which configuration it would choose at each cost: ``z_s(c)``.
Their spread is what the sweep does not know. A straight line through each draw,
``z_s(c) = a_s + b_s (c - c_0)``, is the law, and its continuation to costs that nobody has tried.

Slopes that the runs leave open are drawn towards what is known of a parameter by its role
(:mod:`carbs.analysis.front.growth`), which for most is zero: a normal prior around it, of deviation
``OPTIMUM_IN_COMPUTE`` where nothing is known, is combined with the draws' distribution, parameter
by parameter (Gelman et al. 2013, "Bayesian Data Analysis", sec. 2.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from optuna.study import Study

from carbs.analysis.front.cost_model import CostModel, Known
from carbs.analysis.front.growth import growth
from carbs.analysis.front.response_surface import ResponseSurface
from carbs.analysis.front.trials import frame_records, run_metrics, study_records
from carbs.analysis.laws.usual import OPTIMUM_IN_COMPUTE
from carbs.display import table
from carbs.optimizer import CARBS
from carbs.records import Direction, Failure, Observation
from carbs.result import SearchResult
from carbs.search_space import AllowedPoints, Param, SearchSpace
from carbs.spaces import ChoiceSpace, FloatArray, LinearSpace
from carbs.surrogate import Surrogate, fit_surrogate
from carbs.threads import on_one_thread

N_LEVELS = 9
# Operations are known where so many runs, at least, recorded them.
_N_COUNTED = 8
N_DRAWS = 128
# Of rounding: a line with less of a slope is level.
_LEVEL = 1e-9
# Configurations looked at where the constraints forbid an optimum.
_N_NEAR = 512
# Where the constraints forbid a configuration, as many decades of cost as these are as bad as a
# distance of one.
COST_TOLERANCE = 0.1


@dataclass(frozen=True)
class FrontModel:
    """What a sweep says of the best configuration at each cost.

    Attributes:
        surrogate: the search's model; ``surface``: the one that goes on beyond the sweep.
        level: of every interval.
        levels: log10 of cost, the grid, shape ``(m,)``.
        optima: basic coordinates that each draw would choose, shape ``(S, m, d)``.
        scales: c at the levels, ``(m,)``.
        intercepts, slopes: of each draw's lines in c, at ``scales.mean()``, shape ``(S, d)``.
    """

    space: SearchSpace
    surrogate: Surrogate
    surface: ResponseSurface
    observations: Sequence[Observation]
    failures: Sequence[Failure]
    direction: Direction
    level: float
    levels: FloatArray
    optima: FloatArray
    scales: FloatArray
    intercepts: FloatArray
    slopes: FloatArray

    def __repr__(self) -> str:
        names = ", ".join(param.name for param in self.space.params)
        costs = [observation.cost for observation in self.observations]
        return (
            f"FrontModel({len(costs)} runs over {names}; "
            f"cost {min(costs):.4g} to {max(costs):.4g}, {len(self.failures)} failed)"
        )

    def _repr_html_(self) -> str:
        """The best configuration at some of the costs."""
        rows = []
        for log10_cost in np.linspace(self.levels[0], self.levels[-1], 5):
            params = self.space.decode(self.best_at(log10_cost))
            rows.append([10**log10_cost, *(params.get(p.name, "") for p in self.space.params)])
        header = ["cost", *(param.name for param in self.space.params)]
        return table(header, rows, f"{self!r}\nThe best configuration, by the model")

    @property
    def known_cost(self) -> Known | None:
        """What was known of the cost beforehand (:meth:`CostModel.fit`)."""
        return self.surface.cost.known

    @property
    def dearest(self) -> float:
        """Cost of the sweep's dearest run."""
        return max(observation.cost for observation in self.observations)

    def best_at(self, log10_cost: float) -> FloatArray:
        """Basic coordinates of the configuration on the (median) line, shape ``(d,)``.

        It has the cost, as far as the bounds allow. It need not meet the constraints.
        """
        c = self.surface.cost.scale_of(10**log10_cost)
        Z = self.intercepts + self.slopes * (c - self.scales.mean())
        z = np.median(Z, axis=0)
        snapped = self.space.snap(Z)
        for param in self.space.params:
            if isinstance(param.space, ChoiceSpace):  # what most draws choose
                own = self.space.slices[param.name]
                z[own] = snapped[:, own].mean(axis=0)
        if any(param.when for param in self.space.params):
            # Draws without a conditional parameter say nothing of it.
            for name, is_active in self.space.active_rows(snapped).items():
                if is_active.any():
                    own = self.space.slices[name]
                    if not isinstance(self._param(name).space, ChoiceSpace):
                        z[own] = np.median(Z[is_active][:, own], axis=0)
        chart = self.surface.chart
        return np.asarray(chart.points(np.array([c]), (z - chart.line(np.array([c])[0]))[None])[0])

    def _param(self, name: str) -> Param:
        return next(param for param in self.space.params if param.name == name)

    def active(self, param: Param) -> NDArray[np.bool_]:
        """In which draws, and at which costs, the optimum has a parameter: ``(S, m)``."""
        Z = self.optima.reshape(-1, self.space.n_dims)
        return self.space.active_rows(Z)[param.name].reshape(self.optima.shape[:2])


@on_one_thread
def fit_front(
    space: SearchSpace,
    observations: Sequence[Observation],
    failures: Sequence[Failure] = (),
    *,
    direction: Direction = "minimize",
    level: float = 0.9,
    seed: int = 0,
    known_cost: Known | None = None,
) -> FrontModel:
    """The best configuration at each cost, as far as the observations tell.

    Args:
        space: of the configurations.
        observations: at least four, with more than one cost.
        failures: configurations to stay away from.
        direction: whether a low or a high output is good.
        level: of the intervals.
        seed: of the draws.
        known_cost: log10 of what costs are known to be nearly proportional to, at basic points; by
            default what the space says of its ``cost``.

    Raises:
        ValueError: too few observations.
    """
    costs = np.array([observation.cost for observation in observations])
    if len(costs) < 4 or np.ptp(costs) == 0:
        raise ValueError(
            f"curves need at least four finished runs of different cost, but there are {len(costs)}"
        )
    sign = 1.0 if direction == "minimize" else -1.0
    losses = [o.model_copy(update={"output": sign * o.output}) for o in observations]
    surrogate = fit_surrogate(space, losses, failures)
    if known_cost is None and space.cost is not None:
        known_cost = space.log10_cost
    surface = ResponseSurface.of(space, losses, known_cost, failures=failures, axes=surrogate.axes)
    rng = np.random.default_rng(seed)
    ends = np.log10(np.quantile(costs, [0.1, 1.0]))
    levels = np.linspace(ends[0], ends[1], N_LEVELS)
    scales = np.array([surface.cost.scale_of(cost) for cost in 10**levels])

    def judge(Z: FloatArray, n_draws: int) -> FloatArray:
        mean, _ = surrogate.warped_output(Z)
        return np.asarray(mean + surrogate.output_process.sample(Z, n_draws, rng))

    s = surface.best(scales, N_DRAWS, rng, judge)
    optima = _points(surface, scales, s)
    if space.constraints:
        optima = _allowed(space, surface, optima, rng)
    intercepts, slopes = _lines(space, scales, s + surface.chart.line(scales), optima)
    shrunk = _shrunk(space, slopes, surface.cost.mean_exponents())
    intercepts, slopes = _with_driver(surface, scales, intercepts, shrunk)
    return FrontModel(
        space,
        surrogate,
        surface,
        observations,
        failures,
        direction,
        level,
        levels,
        optima,
        scales,
        intercepts,
        slopes,
    )


def as_front(
    data: FrontModel | CARBS | SearchResult | Study | pd.DataFrame,
    *,
    space: SearchSpace | None = None,
    direction: Direction | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> FrontModel:
    """A front fitted to a search, a study or a frame of runs; one that is fitted stays as it is.

    Raises:
        ValueError: too few runs, columns that are missing, or something else than these.
    """
    if isinstance(data, FrontModel):
        return data
    if isinstance(data, SearchResult):
        data = data.optimizer
    if isinstance(data, CARBS):
        return fit_front(
            space or data.space,
            data.observations,
            data.failures,
            direction=direction or data.direction,
            level=level,
            seed=seed,
        )
    if isinstance(data, Study):
        space, known, sought = study_records(data, space)
        direction = direction or sought
    elif isinstance(data, pd.DataFrame):
        space, known = frame_records(data, space)
    else:
        raise ValueError(
            f"a {type(data).__name__} is no runs: expected the result of carbs.minimize, a CARBS, "
            "a study, a frame with one row a run, or a front"
        )
    counted = None if space.cost is not None else _flops(data, space, known.observations)
    return fit_front(
        space,
        known.observations,
        known.failures,
        direction=direction or "minimize",
        level=level,
        seed=seed,
        known_cost=None if counted is None else counted.log10,
    )


def _flops(
    data: Study | pd.DataFrame, space: SearchSpace, observations: Sequence[Observation]
) -> CostModel | None:
    """A model of the operations, where the runs recorded them; else None."""
    metrics = run_metrics(data, space)
    if "flops" not in metrics:
        return None
    flops = dict(zip(metrics["id"], metrics["flops"], strict=True))
    counted = [o for o in observations if flops.get(o.id, 0.0) > 0]
    if len(counted) < _N_COUNTED:
        return None
    Z = space.encode_all([o.params for o in counted])
    counts = np.array([float(flops[o.id]) for o in counted])
    return CostModel.fit(space, Z, counts, has_overhead=False)


def _points(
    surface: ResponseSurface, scales: FloatArray, s: FloatArray, bounded: bool = True
) -> FloatArray:
    n_draws, n_levels, d = s.shape
    Z = surface.chart.points(np.tile(scales, n_draws), s.reshape(-1, d), bounded)
    return Z.reshape(n_draws, n_levels, d)


def _allowed(
    space: SearchSpace, surface: ResponseSurface, optima: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Optima that the constraints forbid, moved to near configurations that they allow."""
    moved = optima.copy()
    for i in range(optima.shape[1]):
        forbidden = [k for k in range(len(optima)) if not space.allows(space.decode(optima[k, i]))]
        if not forbidden:
            continue
        origins = optima[rng.choice(forbidden, size=_N_NEAR), i]
        pool = nearby(space, origins, rng)
        pool = pool[AllowedPoints(space).first(pool, np.arange(len(pool)), len(pool))]
        c = surface.cost.scale(pool)[0]
        for k in forbidden:
            off = np.abs(c - surface.cost.scale(optima[k, i][None])[0])
            distance = np.linalg.norm(pool - optima[k, i], axis=1)
            moved[k, i] = pool[int(np.argmin(distance + off / COST_TOLERANCE))]
    return moved


def nearby(space: SearchSpace, origins: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Configurations around the origins, and the centre, which the constraints allow."""
    shape = origins.shape
    steps = rng.standard_normal(shape) * (rng.random(shape) < 0.5)
    near = space.snap(origins + 10 ** rng.uniform(-2.0, 0.3, size=(len(origins), 1)) * steps)
    return np.concatenate([near, space.center[None, :]])


def _lines(
    space: SearchSpace, scales: FloatArray, free: FloatArray, optima: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Through each draw's optima, by least squares: intercepts and slopes, ``(S, d)``.

    The line of a conditional parameter goes through those optima that have it, and is level where
    they are fewer than half.

    Args:
        scales: shape ``(m,)``.
        free: the optima before they are rounded, shape ``(S, m, d)``.
        optima: as a run can have them.
    """
    has = np.ones_like(optima)  # (S, m, d)
    for name, rows in space.active_rows(optima.reshape(-1, space.n_dims)).items():
        has[:, :, space.slices[name]] = rows.reshape(*optima.shape[:2], 1)
    values = np.where(has > 0, free, optima)
    has += (has.sum(axis=1) == 0)[:, None, :]  # nowhere: at the centre throughout
    n = has.sum(axis=1)
    centered = (scales - scales.mean())[:, None]
    mean_level = (has * centered).sum(axis=1) / n
    off = has * (centered - mean_level[:, None, :])
    slopes = (off * values).sum(axis=1) / np.maximum(np.square(off).sum(axis=1), 1e-12)
    slopes = np.where(2 * n < len(scales), 0.0, slopes)
    return (has * values).sum(axis=1) / n - slopes * mean_level, slopes


def _shrunk(space: SearchSpace, slopes: FloatArray, exponents: FloatArray) -> FloatArray:
    """The slopes ``(S, d)`` with their prior: level and spread of each column are moved.

    A draw whose optimum lies on a bound throughout stays there.
    """
    units = np.concatenate([np.full(p.space.n_dims, decades_of_unit(p)) for p in space.params])
    mean, prior = growth(space, exponents)
    prior = np.where(np.isfinite(prior), prior, OPTIMUM_IN_COMPUTE / units)
    is_level = np.abs(slopes) < _LEVEL
    slopes = slopes - mean
    low, middle, high = np.quantile(slopes, [0.16, 0.5, 0.84], axis=0)
    share = prior**2 / (prior**2 + np.square((high - low) / 2))
    moved = mean + share * middle + np.sqrt(share) * (slopes - middle)
    return np.where(is_level, 0.0, moved)


def decades_of_unit(param: Param) -> float:
    """Decades in a basic unit: 1 for a linear scale, whose unit is its own, and a category."""
    return 1.0 if isinstance(param.space, (LinearSpace, ChoiceSpace)) else param.space.scale


def _with_driver(
    surface: ResponseSurface, scales: FloatArray, intercepts: FloatArray, slopes: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The lines, with that of the chart's driver such that the cost comes out."""
    Z = intercepts[:, None] + slopes[:, None] * (scales - scales.mean())[None, :, None]
    Z = _points(surface, scales, Z - surface.chart.line(scales), bounded=False)
    z, x = Z[:, :, surface.chart.driver], scales - scales.mean()
    intercepts, slopes = intercepts.copy(), slopes.copy()
    intercepts[:, surface.chart.driver] = z.mean(axis=1)
    slopes[:, surface.chart.driver] = z @ x / (x @ x)
    return intercepts, slopes
