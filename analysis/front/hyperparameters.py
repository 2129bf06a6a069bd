"""Each hyperparameter's optimum as a function of cost, with its uncertainty.

The front's draws (:mod:`carbs.analysis.front.model`) say which value each would choose at each
cost, and their lines give the law, its exponents' distribution, and its continuation. What the
basic coordinate is makes the law: log-linear for a parameter on a logarithmic scale, linear in the
log odds for a fraction, and in the log ratio for shares of a mix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from optuna.study import Study

from carbs.analysis.front.model import FrontModel, as_front, decades_of_unit
from carbs.analysis.laws.shown import Shown
from carbs.optimizer import CARBS
from carbs.records import Direction
from carbs.result import SearchResult
from carbs.search_space import Param, SearchSpace
from carbs.spaces import (
    ChoiceSpace,
    FloatArray,
    LinearSpace,
    LogitSpace,
    LogSpace,
    MixtureSpace,
    NumericSpace,
)
from carbs.threads import on_one_thread

# Fewer draws than this share say nothing of a conditional parameter that they have.
_LEAST_SHARE = 0.1
# How much further than the draws' an optimum's band goes, in basic units: they know of bowls, and
# of what was tried, alone.
_BESIDE = 0.5

LawKind = Literal["log-linear", "logit", "log-ratio", "linear"]


@dataclass(frozen=True)
class Curve(Shown):
    """One number's optimum along the front. A mixture has one curve a component.

    Attributes:
        name: of the parameter, with its component: ``mix.code``.
        costs: shape ``(m,)``, rising.
        median, low, high: of the optimum at each cost, in the parameter's unit, shape ``(m,)``;
            the band is somewhat wider than the draws', which miss what no bowl has. Of
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
        multiple: what every value is a whole multiple of; 0 where it may be any number.
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
    multiple: int = 0

    def predict(self, cost: ArrayLike) -> FloatArray:
        """The law's optimum at any cost, in the shape of ``cost``; bounds are not looked at."""
        return np.asarray(self._quantiles(cost, (0.5,))[0])

    def interval(self, cost: ArrayLike, level: float = 0.9) -> tuple[FloatArray, FloatArray]:
        """Where the law has the optimum at any cost: (low, high) in the shape of ``cost``."""
        tail = (1 - level) / 2
        low, high = self._quantiles(cost, (tail, 1 - tail))
        return low, high

    def possible(self, cost: float, level: float = 0.9) -> tuple[float, float]:
        """:meth:`interval` at one cost, in values such as the parameter has, bounds aside."""
        low, high = (float(end) for end in self.interval(cost, level))
        if not self.multiple:
            return low, high
        least = 1 if self.law == "log-linear" else -math.inf
        low, high = (self.multiple * max(round(x / self.multiple), least) for x in (low, high))
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

    @property
    def fitted_to(self) -> str:
        """In words: of what, over which costs, and what to know of it."""
        said = [f"{self.name} at costs from {self.costs[0]:.3g} to {self.costs[-1]:.3g}"]
        if not self.matters:
            said.append("not seen to matter")
        if self.at_bound:
            said.append(f"on its {self.at_bound} bound")
        if self.bends:
            said.append("bends")
        return ", ".join(said)

    def __repr__(self) -> str:
        law = ""
        if self.slope is not None:
            middle, low, high = self.slope
            law = f"; {self.summary()['coefficient'][0]} {middle:.2g} [{low:.2g}, {high:.2g}]"
        return f"Curve({self.fitted_to}{law})"

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


@on_one_thread
def hyperparameter_curves(
    data: FrontModel | CARBS | SearchResult | Study | pd.DataFrame,
    *,
    space: SearchSpace | None = None,
    direction: Direction | None = None,
    level: float = 0.9,
    seed: int = 0,
) -> list[Curve]:
    """Every parameter's optimum over cost: of each number, each component, not of categories.

    Conditional parameters that hardly any draw has are left out.

    Args:
        data: the result of :func:`carbs.minimize` or its optimizer, a study of a sweep, a frame as
            of :func:`analysis.trials_frame`, or a fitted front.
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
            low[has_optimum] = _moved(param, low[has_optimum], -_BESIDE)
            high[has_optimum] = _moved(param, high[has_optimum], _BESIDE)
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
                    _multiple(param),
                )
            )
    return curves


def _moved(param: Param, values: FloatArray, step: float) -> FloatArray:
    """Values of a number, or a share, ``(n,)``, moved by basic units, as far as the space goes."""
    space = param.space
    if isinstance(space, MixtureSpace):
        power = (values + space.offset) * 10.0 ** (space.scale * step)
        return np.asarray(np.clip(power - space.offset, 0.0, 1.0))
    Z = space.encode_all(values.tolist(), param.search_center) + step
    numbers = [space.decode(z, param.search_center) for z in space.snap(Z, param.search_center)]
    # A whole number may be rounded to the other side of what was between two of them.
    further = np.minimum if step < 0 else np.maximum
    return np.asarray(further(values, np.array(numbers, dtype=float)))


def _unwarped_lines(front: FrontModel, param: Param, k: int) -> FloatArray:
    """Lines of a basic dimension in the quantity that the law is linear in, ``(S, 2)``."""
    i = front.space.slices[param.name].start + k
    unit, space = decades_of_unit(param), param.space
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


def _law(param: Param) -> LawKind:
    if isinstance(param.space, MixtureSpace):
        return "log-ratio"
    if isinstance(param.space, LogitSpace):
        return "logit"
    return "log-linear" if isinstance(param.space, LogSpace) else "linear"


def _multiple(param: Param) -> int:
    if isinstance(param.space, NumericSpace) and param.space.is_integer:
        return param.space.rounding_factor
    return 0


def _bound(param: Param, median: FloatArray) -> Literal["low", "high"] | None:
    if isinstance(param.space, (ChoiceSpace, MixtureSpace)):
        return None
    low, high = param.space.limits()
    if isinstance(param.space, LogSpace) and param.space.is_integer and low == 1:
        low = -math.inf  # of a count there cannot be less than one: nothing could be widened
    if np.any(median <= low * (1 + 1e-9) if low > 0 else median <= low):
        return "low" if math.isfinite(low) else None
    return "high" if np.any(median >= high * (1 - 1e-9)) else None


@on_one_thread
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
    if isinstance(param.space, ChoiceSpace):
        return {}
    Z, center = front.optima[:, :, front.space.slices[param.name]], param.search_center
    shape = Z.shape[:2]
    values = param.space.columns(param.space.snap(Z.reshape(-1, Z.shape[2]), center), center)
    if isinstance(param.space, MixtureSpace):
        return {f"{param.name}.{name}": share.reshape(shape) for name, share in values.items()}
    values = np.round(values) if param.space.is_integer else values
    return {param.name: values.reshape(shape)}
