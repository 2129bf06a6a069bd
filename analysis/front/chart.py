"""A sweep's configurations by their cost and by where they lie beside the front.

Notation
--------
z        basic coordinates of a configuration, shape ``(d,)``
c        its scale: log10 of what its cost exceeds a fixed overhead by
s        ``z - m(c)``: where it lies beside a reference line m along the front, shape ``(d,)``
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from carbs.analysis.front.cost_model import CostModel
from carbs.analysis.front.growth import growth
from carbs.search_space import SearchSpace
from carbs.spaces import ChoiceSpace, FloatArray, MixtureSpace

# Prior deviation of how a reference line moves, in basic units a decade of cost.
_LINE_SLOPE = 0.5
# Where that is known beforehand, a run near the front counts so much: such runs lie where the
# search believed the optimum to be, and a line through them is off by twice what they scatter.
_RUN_COUNTS = 0.25
# How far beside the runs near the front an optimum is believed, in basic units.
_MARGIN = 0.3


@dataclass(frozen=True)
class Chart:
    """Coordinates (c, s) instead of z, and back.

    One dimension, which drives the cost most, follows from the others and from c.

    Attributes:
        driver: that dimension.
        middle: of c, where the line's ``intercepts`` ``(d,)`` are; ``slopes`` ``(d,)`` a unit of c.
        low, high: what s is kept between, each ``(d,)``.
    """

    space: SearchSpace
    cost: CostModel
    driver: int
    middle: float
    intercepts: FloatArray
    slopes: FloatArray
    low: FloatArray
    high: FloatArray

    @classmethod
    def of(cls, space: SearchSpace, cost: CostModel, Z: FloatArray, losses: FloatArray) -> Chart:
        """Whose line runs through the runs near the front: points ``(n, d)``, losses ``(n,)``."""
        c, _ = cost.scale(Z)
        d = Z.shape[1]
        middle = float((c.min() + c.max()) / 2)
        good = near_front(Z, c, losses)
        intercepts, slopes = np.zeros(d), np.zeros(d)
        has = np.ones((len(Z), d), dtype=bool)
        for name, is_active in space.active_rows(Z).items():
            has[:, space.slices[name]] = is_active[:, None]
        beforehand, deviations = growth(space, cost.mean_exponents())
        is_known = np.isfinite(deviations)
        deviations = np.where(is_known, deviations, _LINE_SLOPE)
        for i in range(d):
            rows = good[has[good, i]] if has[good, i].sum() >= 3 else np.flatnonzero(has[:, i])
            if not len(rows):
                continue
            x, z = c[rows] - middle, Z[rows, i]
            spread = max(float(z.std()), 0.05)
            # Ridge: the level is free, the slope as it was believed unless the runs say otherwise.
            A = np.stack([np.ones(len(x)), x], axis=1)
            counts = (_RUN_COUNTS if is_known[i] else 1.0) / spread**2
            prior = np.array([1e-6, 1 / deviations[i] ** 2])
            told = counts * A.T @ z + prior * np.array([0.0, beforehand[i]])
            intercepts[i], slopes[i] = np.linalg.solve(counts * A.T @ A + np.diag(prior), told)
        numeric = [
            space.slices[param.name].start
            for param in space.params
            if not isinstance(param.space, (ChoiceSpace, MixtureSpace)) and not param.when
        ]
        for param in space.params:
            if isinstance(param.space, ChoiceSpace):
                own = space.slices[param.name]
                intercepts[own], slopes[own] = Z[:, own].mean(axis=0), 0.0
        driver = _driver(space, cost, Z, numeric or list(range(d)), good)
        s = np.where(has, Z - (intercepts + slopes * (c - middle)[:, None]), 0.0)
        low = s[good].min(axis=0) - _MARGIN
        high = s[good].max(axis=0) + _MARGIN
        return cls(space, cost, driver, middle, intercepts, slopes, low, high)

    def line(self, c: FloatArray) -> FloatArray:
        return np.asarray(self.intercepts + self.slopes * (np.asarray(c) - self.middle)[..., None])

    def beside(self, Z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(c, s) of basic points: ``(n,)`` and ``(n, d)``, s zero where nothing is to be said."""
        c, _ = self.cost.scale(Z)
        s = Z - self.line(c)
        s[:, self.driver] = 0.0
        for name, is_active in self.space.active_rows(Z).items():
            s[~is_active, self.space.slices[name]] = 0.0
        return c, s

    def points(self, c: FloatArray, s: FloatArray, bounded: bool = True) -> FloatArray:
        """Basic points ``(n, d)`` at ``c`` ``(n,)`` and ``s`` ``(n, d)``: what a run can have."""
        Z = self.line(c) + s
        Z = self.space.snap(Z) if bounded else Z
        j = self.driver
        for _ in range(5):
            here, _ = self.cost.scale(Z)
            step = 0.25
            ahead = Z.copy()
            ahead[:, j] += step
            slope = (self.cost.scale(ahead)[0] - here) / step
            move = (c - here) / np.where(np.abs(slope) > 0.05, slope, np.inf)
            Z[:, j] += np.clip(move, -4.0, 4.0)
        return self.space.snap(Z) if bounded else Z


def near_front(Z: FloatArray, c: FloatArray, losses: FloatArray) -> NDArray[np.intp]:
    """The runs that came out best for their cost: half of those that count, at least eight.

    Args:
        Z: points ``(n, d)``, with their scales ``c`` and losses, ``(n,)``.
    """
    order = np.argsort(c, kind="stable")
    above = np.empty(len(c))
    best = np.inf
    for i in order:
        best = min(best, losses[i])
        above[i] = losses[i] - best
    # Best so far is no judge of the cheapest runs: those above the centre's loss are out.
    center = losses[np.argmin(np.square(Z).sum(axis=1))]
    eligible = np.flatnonzero(losses <= center)
    if len(eligible) < 8:
        eligible = np.arange(len(c))
    n_most = max(8, len(eligible) // 2)
    return np.asarray(eligible[np.argsort(above[eligible], kind="stable")[:n_most]])


def _driver(
    space: SearchSpace,
    cost: CostModel,
    Z: FloatArray,
    candidates: list[int],
    good: NDArray[np.intp],
) -> int:
    """The dimension whose move by what was tried changes the cost most; best an open one."""
    base = Z[good].mean(axis=0)
    effects = []
    upper = _upper(space)
    for i in candidates:
        ends = np.stack([base, base])
        ends[0, i], ends[1, i] = base[i] - 0.5, base[i] + 0.5
        slope = float(np.diff(cost.scale(ends)[0])[0])
        effect = abs(slope) * max(float(Z[:, i].std()), 0.1)
        effects.append(effect * (1.0 if math.isinf(upper[i]) else 0.5))
    return candidates[int(np.argmax(effects))]


def _upper(space: SearchSpace) -> FloatArray:
    upper = np.full(space.n_dims, math.inf)
    for param in space.params:
        if not isinstance(param.space, (ChoiceSpace, MixtureSpace)):
            high = param.space.limits()[1]
            if math.isfinite(high):
                upper[space.slices[param.name].start] = high
    return upper
