"""Each hyperparameter's optimum as a function of cost, with its uncertainty.

Notation
--------
c        scale: log10 of what a cost exceeds the overhead by (:mod:`analysis.response_surface`)
z        basic coordinates of a configuration, shape ``(d,)``
s        one of S bowls drawn from the response surface's posterior

The optimum at a cost is not read off the few runs that happen to lie on the front. Bowls are drawn
from the posterior, and each draw says which configuration it would choose at each cost: ``z_s(c)``.
Their spread is what the sweep does not know. A straight line through each draw,
``z_s(c) = a_s + b_s (c - c_0)``, gives the law, its exponents' distribution, and its continuation
to costs that nobody has tried. What z is makes the law: log-linear for a parameter on a
logarithmic scale, linear in the log odds for a fraction, and in the log ratio for shares of a mix.

Exponents that the runs leave open are drawn towards zero: a normal prior around it, of deviation
``_SLOPE_PRIOR``, is combined with the draws' distribution, parameter by parameter (Gelman et al.
2013, "Bayesian Data Analysis", sec. 2.5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from optuna.study import Study

from analysis.response_surface import ResponseSurface
from analysis.trials import frame_records, study_records
from carbs.optimizer import Direction
from carbs.records import Failure, Observation
from carbs.space import (
    AllowedPoints,
    ChoiceSpace,
    FloatArray,
    LinearSpace,
    LogitSpace,
    LogSpace,
    MixtureSpace,
    Param,
    SearchSpace,
)
from carbs.surrogate import Surrogate, fit_surrogate

N_LEVELS = 9
N_DRAWS = 128
# Of exponents: decades of the parameter (of its odds, of its share) a decade of cost; for a
# parameter on a linear scale, of its own scale.
_SLOPE_PRIOR = 0.3
# Fewer draws than this share say nothing of a conditional parameter that they have.
_LEAST_SHARE = 0.1
# Configurations looked at where the constraints forbid an optimum.
_N_NEAR = 512

LawKind = Literal["log-linear", "logit", "log-ratio", "linear"]


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
        law: what is a straight line in log cost: ``log-linear``, ``logit`` (log odds),
            ``log-ratio`` (of a share) or ``linear``.
        slope: of that line a decade of cost: median, low, high; decades, but for a linear law the
            parameter's unit. None where no draw has the parameter throughout.
        matters: whether the loss would be worse elsewhere in the range that was tried, by more
            than the noise of a run.
        at_bound: the bound on which the optimum sits at some cost: ``low``, ``high``, or None.
        bends: whether the optimum leaves the straight line by more than its band allows.
        lines: of each draw, intercept and slope in ``log10(cost - overhead)`` of what the law is
            linear in, shape ``(S, 2)``; ``offset`` is subtracted from a share.
    """

    name: str
    costs: FloatArray
    median: FloatArray
    low: FloatArray
    high: FloatArray
    exponent: tuple[float, float, float] | None
    law: LawKind = "log-linear"
    slope: tuple[float, float, float] | None = None
    matters: bool = True
    at_bound: Literal["low", "high"] | None = None
    bends: bool = False

    lines: FloatArray = field(default_factory=lambda: np.empty((0, 2)), repr=False)
    overhead: float = 0.0
    offset: float = 0.0

    def predict(self, cost: ArrayLike) -> FloatArray:
        """The law's optimum at any cost, in the shape of ``cost``; bounds are not looked at."""
        return np.asarray(self._quantiles(cost, (0.5,))[0])

    def interval(self, cost: ArrayLike, level: float = 0.9) -> tuple[FloatArray, FloatArray]:
        """Where the law has the optimum at any cost: (low, high) in the shape of ``cost``."""
        tail = (1 - level) / 2
        low, high = self._quantiles(cost, (tail, 1 - tail))
        return low, high

    def _quantiles(self, cost: ArrayLike, levels: Sequence[float]) -> FloatArray:
        if not len(self.lines):
            raise ValueError(f"{self.name} has no law: few optima have it at every cost")
        costs = np.asarray(cost, dtype=float)
        c = np.log10(np.maximum(costs - self.overhead, 1e-3 * costs))
        u = self.lines[:, 0].reshape(-1, *[1] * c.ndim) + np.multiply.outer(self.lines[:, 1], c)
        u = np.quantile(u, levels, axis=0)
        if self.law == "linear":
            return np.asarray(u)
        power = 10.0 ** np.clip(u, -300, 300)
        if self.law == "logit":
            return np.asarray(power / (1 + power))
        if self.law == "log-ratio":
            return np.asarray(np.clip(power - self.offset, 0.0, 1.0))
        return np.asarray(power)

    def summary(self) -> pd.DataFrame:
        """One row a coefficient of the law: estimate, interval, and what to know of it."""
        if self.slope is None:
            return pd.DataFrame(columns=["coefficient", "estimate", "low", "high"])
        name = "exponent" if self.law == "log-linear" else "slope per decade of cost"
        return pd.DataFrame(
            {
                "coefficient": [name],
                "estimate": [self.slope[0]],
                "low": [self.slope[1]],
                "high": [self.slope[2]],
            }
        )


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
    surface = ResponseSurface.of(space, losses)
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
    intercepts, slopes = _with_driver(surface, scales, intercepts, _shrunk(space, slopes))
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


# Where the constraints forbid a configuration, as many decades of cost as these are as bad as a
# distance of one.
COST_TOLERANCE = 0.1


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


def _shrunk(space: SearchSpace, slopes: FloatArray) -> FloatArray:
    """The slopes ``(S, d)`` with their prior: level and spread of each column are moved."""
    units = np.concatenate([np.full(p.space.n_dims, _unit(p)) for p in space.params])
    prior = _SLOPE_PRIOR / units
    low, middle, high = np.quantile(slopes, [0.16, 0.5, 0.84], axis=0)
    share = prior**2 / (prior**2 + np.square((high - low) / 2))
    return np.asarray(share * middle + np.sqrt(share) * (slopes - middle))


def _unit(param: Param) -> float:
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


def hyperparameter_curves(
    data: FrontModel | Study | pd.DataFrame,
    *,
    space: SearchSpace | None = None,
    direction: Direction | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> list[Curve]:
    """Every parameter's optimum over cost: of each number, each component, not of categories.

    Conditional parameters that hardly any draw has are left out.

    Args:
        data: a study of a sweep, a frame as of :func:`analysis.trials_frame`, or a fitted front.
        space: where the study or frame does not say it.
        direction: of the output, where ``data`` is a frame; ``minimize`` by default.
        level: of the intervals, where nothing has been fitted yet.
        seed: of the draws, likewise.

    Raises:
        ValueError: too few runs, or columns that are missing.
    """
    front = as_front(data, space=space, direction=direction, level=level, seed=seed)
    tail = (1 - front.level) / 2
    spans = _spans(front)
    curves = []
    for param in front.space.params:
        is_active = front.active(param)
        has_optimum = is_active.mean(axis=0) >= _LEAST_SHARE
        if not has_optimum.any() or isinstance(param.space, ChoiceSpace):
            continue
        throughout = np.all(is_active, axis=1)
        own = front.space.slices[param.name]
        for k, (name, values) in enumerate(_numbers(front, param).items()):
            optimum = np.full((3, len(front.levels)), math.nan)
            for i in np.flatnonzero(has_optimum):
                chosen = values[is_active[:, i], i]
                optimum[:, i] = np.quantile(chosen, [tail, 0.5, 1 - tail])
            low, median, high = optimum
            slope, lines = None, np.empty((0, 2))
            if throughout.mean() >= _LEAST_SHARE:
                lines = _unwarped_lines(front, param, k)[throughout]
                slopes = lines[:, 1]
                middle, least, most = np.quantile(slopes, [0.5, tail, 1 - tail]).tolist()
                slope = (middle, least, most)
            curves.append(
                Curve(
                    name,
                    10**front.levels,
                    median,
                    low,
                    high,
                    slope if isinstance(param.space, LogSpace) else None,
                    _law(param),
                    slope,
                    bool(spans[own.start + k] > 2 * front.surface.noise),
                    _bound(param, median[has_optimum]),
                    _bends(front, own.start + k),
                    lines,
                    front.surface.cost.overhead,
                    param.space.offset if isinstance(param.space, MixtureSpace) else 0.0,
                )
            )
    return curves


def _unwarped_lines(front: FrontModel, param: Param, k: int) -> FloatArray:
    """Lines of a basic dimension in the quantity that the law is linear in, ``(S, 2)``."""
    i = front.space.slices[param.name].start + k
    unit, space = _unit(param), param.space
    if isinstance(space, MixtureSpace):
        at_center = math.log10(param.search_center[space.components[k]] + space.offset)
    elif isinstance(space, LogSpace):
        at_center = math.log10(param.search_center)
    elif isinstance(space, LogitSpace):
        at_center = math.log10(param.search_center / (1 - param.search_center))
    else:
        assert isinstance(space, LinearSpace)
        at_center, unit = float(param.search_center), space.scale
    slopes = unit * front.slopes[:, i]
    levels = at_center + unit * front.intercepts[:, i] - slopes * front.scales.mean()
    return np.stack([levels, slopes], axis=1)


def as_front(
    data: FrontModel | Study | pd.DataFrame,
    *,
    space: SearchSpace | None = None,
    direction: Direction | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> FrontModel:
    """A front fitted to a study or a frame of runs; one that is fitted is returned as it is."""
    if isinstance(data, FrontModel):
        return data
    if isinstance(data, Study):
        space, known, sought = study_records(data, space)
        direction = direction or sought
    else:
        space, known = frame_records(data, space)
    return fit_front(
        space,
        known.observations,
        known.failures,
        direction=direction or "minimize",
        level=level,
        seed=seed,
    )


def _law(param: Param) -> LawKind:
    if isinstance(param.space, MixtureSpace):
        return "log-ratio"
    if isinstance(param.space, LogitSpace):
        return "logit"
    return "log-linear" if isinstance(param.space, LogSpace) else "linear"


def _bound(param: Param, median: FloatArray) -> Literal["low", "high"] | None:
    if isinstance(param.space, (ChoiceSpace, MixtureSpace)):
        return None
    low, high = param.space.limits()
    if np.any(median <= low * (1 + 1e-9) if low > 0 else median <= low):
        return "low" if math.isfinite(low) else None
    return "high" if np.any(median >= high * (1 - 1e-9)) else None


def loss_around(
    front: FrontModel, name: str, n: int = 60
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """How much worse the loss is beside one parameter's optimum, all others at their best.

    Args:
        front: fitted.
        name: of a parameter on a logarithmic scale.
        n: points along each axis.

    Returns:
        Costs ``(n,)``, values of the parameter ``(n,)``, and the mean surface's loss above its
        least at each cost, ``(n, n)``, values by costs.

    Raises:
        ValueError: the parameter has no bowl: it is none, not logarithmic, or drives the cost.
    """
    surface, space = front.surface, front.space
    param = next((param for param in space.params if param.name == name), None)
    if param is None or not isinstance(param.space, LogSpace):
        raise ValueError(f"{name!r} is no parameter on a logarithmic scale")
    i = space.slices[name].start
    if i == surface.chart.driver:
        raise ValueError(f"{name!r} follows from the cost and the other parameters")
    c = np.linspace(front.scales[0], front.scales[-1], n)
    best = surface.best(c, None)[0]
    tried = surface.Z[:, i]
    z = np.linspace(tried.min(), tried.max(), n)
    s = np.repeat(best[None], n, axis=0)
    s[:, :, i] = z[:, None] - surface.chart.line(c)[:, i]
    losses = surface.law(np.tile(c, n), s.reshape(n * n, -1)).reshape(n, n)
    values = param.search_center * 10 ** (param.space.scale * z)
    return surface.cost.cost_of(c), values, losses - losses.min(axis=0)


def _spans(front: FrontModel) -> FloatArray:
    """How much worse the loss is at the worse end of what was tried, in the middle of the costs.

    From the mean surface, each basic dimension by itself, all others at their best: ``(d,)``.
    """
    surface, d = front.surface, front.space.n_dims
    c = np.array([surface.chart.middle])
    best = surface.best(c, None)[0]
    s = np.concatenate([best, *(best for _ in range(2 * d))])
    tried = surface.s.min(axis=0), surface.s.max(axis=0)
    for i in range(d):
        s[1 + 2 * i, i], s[2 + 2 * i, i] = tried[0][i], tried[1][i]
    losses = surface.law(np.tile(c, len(s)), s)
    spans = losses[1:].reshape(d, 2).max(axis=1) - losses[0]
    spans[surface.chart.driver] = np.inf  # it drives the cost
    return np.asarray(spans)


def _bends(front: FrontModel, i: int) -> bool:
    """Whether the optima leave their line, in the middle and at the ends, in nearly all draws."""
    line = np.polynomial.polynomial.polyvander(front.scales, 2)
    curvature = np.linalg.lstsq(line, front.optima[:, :, i].T, rcond=None)[0][2]
    tail = (1 - front.level) / 2
    low, high = np.quantile(curvature, [tail, 1 - tail])
    # A bend of a rounding step, or of a hundredth over the whole range, is none.
    least = 0.01 / max(float(np.ptp(front.scales)), 1e-9) ** 2
    return bool(low > least or high < -least)


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
