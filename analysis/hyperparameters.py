"""Each hyperparameter's optimum as a function of cost, with its uncertainty.

Notation
--------
c        log10 of cost; ``c_1 ... c_m`` a grid over the costs that were searched
z        basic coordinates of a configuration, shape ``(d,)``
s        one of S functions drawn from the surrogate's posterior of the loss

The optimum at a cost is not read off the few runs that happen to lie on the front. Functions are
drawn from the posterior, jointly over a pool of configurations around the predicted front, and each
draw says which configuration it would choose at each cost: ``z_s(c)``. Their spread is what the
sweep does not know. A straight line through each draw, ``z_s(c) = a_s + b_s (c - c_0)``, gives the
law (a power law for parameters on a logarithmic scale, since z is their logarithm), its exponents'
distribution, and its continuation to costs that nobody has tried.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carbs.acquisition import TrustBox
from carbs.optimizer import Direction
from carbs.records import Failure, Observation
from carbs.space import (
    AllowedPoints,
    ChoiceSpace,
    FloatArray,
    LogSpace,
    MixtureSpace,
    Param,
    SearchSpace,
)
from carbs.surrogate import Surrogate, fit_surrogate

N_LEVELS = 9
N_DRAWS = 256
_POOL_PER_LEVEL = 160
# A configuration competes at a cost when its predicted cost is at most that, and at least
# 10 ** -_BAND of it: comparing with much cheaper ones would only add noise.
_BAND = 0.3
# Fewer draws than this share say nothing of a conditional parameter that they have.
_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class Curve:
    """One number's optimum along the front. A mixture has one curve a component.

    Attributes:
        name: of the parameter, with its component: ``mix.code``.
        costs: shape ``(m,)``, rising.
        median, low, high: of the optimum at each cost, in the parameter's unit, shape ``(m,)``. Of
            a conditional parameter: among the draws that have it, NaN where they are few.
        exponent: of the parameter in cost, for parameters on a logarithmic scale: median, low,
            high. None for others.
    """

    name: str
    costs: FloatArray
    median: FloatArray
    low: FloatArray
    high: FloatArray
    exponent: tuple[float, float, float] | None


@dataclass(frozen=True)
class FrontModel:
    """What a sweep says of the best configuration at each cost.

    Attributes:
        level: of every interval.
        levels: log10 of cost, the grid, shape ``(m,)``.
        optima: basic coordinates that each draw would choose, shape ``(S, m, d)``.
        intercepts, slopes: of each draw's lines, at ``levels.mean()``, shape ``(S, d)``.
    """

    space: SearchSpace
    surrogate: Surrogate
    observations: Sequence[Observation]
    direction: Direction
    level: float
    levels: FloatArray
    optima: FloatArray
    intercepts: FloatArray
    slopes: FloatArray

    def best_at(self, log10_cost: float) -> FloatArray:
        """Basic coordinates of the configuration on the (median) line, shape ``(d,)``.

        It need not meet the constraints.
        """
        Z = self.intercepts + self.slopes * (log10_cost - self.levels.mean())
        z = np.median(Z, axis=0)
        if any(param.when for param in self.space.params):
            # Draws without a conditional parameter say nothing of it.
            for name, is_active in self.space.active_rows(Z).items():
                if is_active.any():
                    own = self.space.slices[name]
                    z[own] = np.median(Z[is_active, own], axis=0)
        return np.asarray(self.space.snap(z[None, :])[0])

    def active(self, param: Param) -> NDArray[np.bool_]:
        """In which draws, and at which costs, the optimum has a parameter: ``(S, m)``."""
        Z = self.optima.reshape(-1, self.space.n_dims)
        return self.space.active_rows(Z)[param.name].reshape(self.optima.shape[:2])


def fit_front(
    space: SearchSpace,
    observations: Sequence[Observation],
    failures: Sequence[Failure] = (),
    *,
    direction: Direction = "minimize",
    level: float = 0.9,
    seed: int = 0,
) -> FrontModel:
    """The best configuration at each cost, as far as the observations tell.

    Args:
        space: of the configurations.
        observations: at least four, with more than one cost.
        failures: configurations to stay away from.
        direction: whether a low or a high output is good.
        level: of the intervals.
        seed: of the draws.

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
    rng = np.random.default_rng(seed)
    levels = np.log10(np.quantile(costs, [0.02, 1.0]))
    levels = np.linspace(levels[0], levels[1], N_LEVELS)
    seen_Z = space.encode_all([observation.params for observation in observations])
    pool = np.concatenate([_pool(space, surrogate, seen_Z, level_, rng) for level_ in levels])
    optima = _optima(surrogate, pool, levels, rng)
    intercepts, slopes = _lines(space, levels, optima)
    return FrontModel(
        space,
        surrogate,
        observations,
        direction,
        level,
        levels,
        optima,
        intercepts,
        slopes,
    )


def _pool(
    space: SearchSpace,
    surrogate: Surrogate,
    seen_Z: FloatArray,
    log10_cost: float,
    rng: np.random.Generator,
) -> FloatArray:
    """Configurations around the best predicted one near a cost, shape ``(p, d)``.

    A population that is kept to the cost's band and contracts around what is predicted best.
    """
    box = TrustBox.around(seen_Z, margin=0.0)
    population = space.snap(
        np.concatenate([seen_Z, rng.uniform(box.low, box.high, size=(256, space.n_dims))])
    )
    if space.constraints:  # a last resort: the centre is always allowed
        population = np.concatenate([population, space.center[None, :]])
    allowed = AllowedPoints(space)
    for radius in (0.8, 0.5, 0.3, 0.2, 0.2):
        scores = _predicted(surrogate, population, log10_cost)
        parents = population[allowed.first(population, np.argsort(scores, kind="stable"), 40)]
        origins = np.repeat(parents, 12, axis=0)
        moved = origins + radius * rng.standard_normal(origins.shape)
        children = space.snap(box.bring_in(moved, origins, rng))
        population = np.concatenate([parents, children])
    # Wider than the contracted population: the draws may disagree with the mean.
    scores = _predicted(surrogate, population, log10_cost)
    parents = population[allowed.first(population, np.argsort(scores, kind="stable"), 10)]
    origins = parents[rng.integers(len(parents), size=4 * _POOL_PER_LEVEL)]
    radii = 10 ** rng.uniform(-1.0, 0.1, size=(len(origins), 1))
    moved = origins + radii * rng.standard_normal(origins.shape)
    candidates = space.snap(box.bring_in(moved, origins, rng))
    c = surrogate.log_cost(candidates)[0] / math.log(10)
    inside = np.flatnonzero((c <= log10_cost) & (c >= log10_cost - _BAND))
    inside = allowed.first(candidates, inside, _POOL_PER_LEVEL)
    return np.concatenate([parents, candidates[inside]])


def _predicted(surrogate: Surrogate, Z: FloatArray, log10_cost: float) -> FloatArray:
    """Warped loss, with a steep penalty outside the cost's band and where runs fail."""
    c = surrogate.log_cost(Z)[0] / math.log(10)
    outside = np.maximum(c - log10_cost, 0) + np.maximum(log10_cost - _BAND - c, 0)
    unlikely = np.maximum(0.5 - surrogate.success_probability(Z), 0)
    return np.asarray(surrogate.warped_output(Z)[0] + 20 * outside + 20 * unlikely)


def _optima(
    surrogate: Surrogate, pool: FloatArray, levels: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """What each draw of the loss would choose at each cost, shape ``(S, m, d)``."""
    mean, _ = surrogate.warped_output(pool)
    draws = mean + surrogate.output_process.sample(pool, N_DRAWS, rng)
    draws = draws + 20 * np.maximum(0.5 - surrogate.success_probability(pool), 0)
    c = surrogate.log_cost(pool)[0] / math.log(10)
    optima = np.empty((N_DRAWS, len(levels), pool.shape[1]))
    for i, log10_cost in enumerate(levels):
        competes = np.flatnonzero((c <= log10_cost + 1e-9) & (c >= log10_cost - _BAND))
        if not len(competes):
            competes = np.argsort(np.abs(c - log10_cost), kind="stable")[:5]
        optima[:, i] = pool[competes[np.argmin(draws[:, competes], axis=1)]]
    return optima


def _lines(
    space: SearchSpace, levels: FloatArray, optima: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Through each draw's optima, by least squares: intercepts and slopes, ``(S, d)``.

    The line of a conditional parameter goes through those optima that have it, and is level where
    they are fewer than half.
    """
    has = np.ones_like(optima)  # (S, m, d)
    for name, rows in space.active_rows(optima.reshape(-1, space.n_dims)).items():
        has[:, :, space.slices[name]] = rows.reshape(*optima.shape[:2], 1)
    has += (has.sum(axis=1) == 0)[:, None, :]  # nowhere: at the centre throughout
    n = has.sum(axis=1)
    centered = (levels - levels.mean())[:, None]
    mean_level = (has * centered).sum(axis=1) / n
    off = has * (centered - mean_level[:, None, :])
    slopes = (off * optima).sum(axis=1) / np.maximum(np.square(off).sum(axis=1), 1e-12)
    slopes = np.where(2 * n < len(levels), 0.0, slopes)
    return (has * optima).sum(axis=1) / n - slopes * mean_level, slopes


def hyperparameter_curves(front: FrontModel) -> list[Curve]:
    """Every parameter's optimum over cost: of each number, each component, not of categories.

    Conditional parameters that hardly any draw has are left out.
    """
    tail = (1 - front.level) / 2
    curves = []
    for param in front.space.params:
        is_active = front.active(param)
        has_optimum = is_active.mean(axis=0) >= _LEAST_SHARE
        if not has_optimum.any():
            continue
        exponent = _exponent(front, param, np.all(is_active, axis=1))
        for name, values in _numbers(front, param).items():
            optimum = np.full((3, len(front.levels)), math.nan)
            for i in np.flatnonzero(has_optimum):
                chosen = values[is_active[:, i], i]
                optimum[:, i] = np.quantile(chosen, [tail, 0.5, 1 - tail])
            low, median, high = optimum
            curves.append(Curve(name, 10**front.levels, median, low, high, exponent))
    return curves


def _exponent(
    front: FrontModel, param: Param, draws: NDArray[np.bool_]
) -> tuple[float, float, float] | None:
    """Of the lines of some draws, those that have the parameter at every cost."""
    if not isinstance(param.space, LogSpace) or draws.mean() < _LEAST_SHARE:
        return None
    tail = (1 - front.level) / 2
    slopes = front.slopes[draws, front.space.slices[param.name].start] * param.space.scale
    median, low, high = np.quantile(slopes, [0.5, tail, 1 - tail]).tolist()
    return median, low, high


def _numbers(front: FrontModel, param: Param) -> dict[str, FloatArray]:
    """Values of a parameter in every draw and at every cost, ``(S, m)``, by name."""
    z = front.optima[:, :, front.space.slices[param.name]]
    n_draws, n_levels, _ = z.shape
    decoded = [param.space.decode(row, param.search_center) for row in z.reshape(-1, z.shape[2])]
    if isinstance(param.space, MixtureSpace):
        return {
            f"{param.name}.{component}": np.array(
                [mix[component] for mix in decoded]  # type: ignore[index]  # mixes are mappings
            ).reshape(n_draws, n_levels)
            for component in param.space.components
        }
    if isinstance(param.space, ChoiceSpace):
        return {}
    numbers = np.array([float(value) for value in decoded])  # type: ignore[arg-type]  # numbers
    return {param.name: numbers.reshape(n_draws, n_levels)}
