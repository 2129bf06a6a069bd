"""A made-up training task: its loss, its cost and its best configurations, in formulas.

Notation
--------
N, D      parameters, tokens; n, d their logarithms to base 10, over those of the search centre
loss      E + A 10^(-a n) + B 10^(-b d) + (reducible part at the centre) * sum_i h_i p(u_i) + ...
u_i       distance of hyperparameter i from its optimum, in its own true scale; the optimum moves as
          a power of N and D; p is a bowl, steeper on one side, that flattens far away
front     every p is zero at the optimum, so that the best loss at a cost is a minimum over N alone
          (over the categories too), taken on a fine grid; where N is made of width and depth it is
          reached but for their rounding
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tasks import Values

from carbs import Param
from carbs.spaces import FloatArray


@dataclass(frozen=True)
class Axis:
    """A hyperparameter that does not change the cost.

    Attributes:
        param: as the search sees it.
        height: what a distance of one true scale costs, in shares of the reducible loss.
        width: the true scale, in decades (of the odds for fractions), or in the unit of a line.
        best, by_n, by_d: the optimum, warped, is ``best + by_n n + by_d d``, at the nearest value
            that the parameter can have: so it can always be reached.
        skew: how much steeper it is above the optimum.
        plateau: the distance beyond which it flattens.
        warp, unwarp: of a value, to where ``width`` is measured, and back.
    """

    param: Param
    height: float
    width: float
    best: float
    by_n: float
    by_d: float
    skew: float
    plateau: float
    warp: Callable[[float], float]
    unwarp: Callable[[float], float]

    def optimum(self, n: float, d: float) -> float:
        space = self.param.space
        x = self.unwarp(self.best + self.by_n * n + self.by_d * d)
        low, high = space.limits()
        return float(np.clip(round(x) if space.is_integer else x, low, high))

    def distance(self, value: float, n: float, d: float) -> float:
        u = (self.warp(value) - self.warp(self.optimum(n, d))) / self.width
        return u * self.skew if u > 0 else u

    def damping(self, u: float) -> float:
        return 1 + (u / self.plateau) ** 2

    def bowl(self, u: float) -> float:
        return self.height * u**2 / self.damping(u)


@dataclass
class Sizes:
    """What drives the cost: N and D, or what stands for them.

    Attributes:
        params: of the search.
        n_0, d_0: the centre's N and D.
        overhead: in units of the centre's cost.
        aspect: how steeply width over depth counts; None where there is neither.
        most_n, most_ratio: limits of n, by memory, and of d - n, by a constraint.
        limits: of n and of d, by the bounds.
        waste, waste_power: a small model leaves the machine idle: a token costs as
            ``10^n + waste 10^(waste_power n)``.
    """

    params: list[Param]
    n_0: float
    d_0: float
    overhead: float = 0.0
    aspect: float | None = None
    most_n: float = math.inf
    most_ratio: float = math.inf
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    waste: float = 0.0
    waste_power: float = 0.0

    def of(self, values: Values) -> tuple[float, float]:
        """n and d."""
        n = 0.0
        if self.aspect is not None:
            n = math.log10(12 * values["width"] ** 2 * values["depth"] / self.n_0)
        elif "N" in values:
            n = math.log10(values["N"] / self.n_0)
        return n, math.log10(values["D"] / self.d_0)

    def cost(self, values: Values) -> float:
        n, d = self.of(values)
        return float(self.overhead + 10 ** (self.of_token(n) + d))

    def of_token(self, n: Any) -> Any:
        """log10 of what a token costs, in units of what it does at the centre."""
        idle = self.waste * 10 ** ((self.waste_power - 1) * n)
        return n + np.log10((1 + idle) / (1 + self.waste))

    def values(self, n: float, d: float, center: Values) -> dict[str, float]:
        """A configuration of that n and d, with the centre's shape, not rounded."""
        values = {"D": self.d_0 * 10**d}
        if self.aspect is not None:
            values |= {name: center[name] * 10 ** (n / 3) for name in ("width", "depth")}
        elif len(self.params) > 1:
            values["N"] = self.n_0 * 10**n
        return values

    def shape_loss(self, values: Values, center: Values) -> float:
        if self.aspect is None:
            return 0.0
        ratio = math.log10(values["width"] / values["depth"] / (center["width"] / center["depth"]))
        return 0.05 * (self.aspect * ratio) ** 2 / (1 + ratio**2)

    def splits(self, cost: float) -> tuple[FloatArray, FloatArray]:
        """All n and d that cost so much and are allowed."""
        has_n = len(self.params) > 1
        n = np.linspace(-4, 5, 3601) if has_n else np.zeros(1)
        d = math.log10(max(cost - self.overhead, 1e-9)) - self.of_token(n)
        kept = (n <= self.most_n) & (d - n <= self.most_ratio + 1e-9)
        for name, x in (("N", n), ("D", d)):
            low, high = self.limits.get(name, (-math.inf, math.inf))
            kept &= (x >= low) & (x <= high)
        return n[kept], d[kept]


@dataclass(frozen=True)
class Law:
    """The loss of a run whose hyperparameters are the best."""

    irreducible: float
    part: float
    share: float
    a: float
    b: float

    def __call__(self, n: Any, d: Any) -> Any:
        reducible = self.share * 10 ** (-self.a * n) + (1 - self.share) * 10 ** (-self.b * d)
        return self.irreducible + self.part * reducible

    def with_bad(self, n: Any, d: Any, bad: Any) -> Any:
        """Bad enough is as bad as having learnt nothing."""
        return self(n, d) + self.part * 3 * np.tanh(np.maximum(bad, 0.0) / 3)


@dataclass(frozen=True)
class Mix:
    """Weights whose best values drift with scale."""

    best: FloatArray
    drift: FloatArray
    height: float

    def target(self, n: float, d: float) -> FloatArray:
        weights = self.best * 10 ** (self.drift * (n + d) / 2)
        return np.asarray(weights / weights.sum())

    def bad(self, weights: FloatArray, n: float, d: float) -> float:
        off = np.sqrt(weights) - np.sqrt(self.target(n, d))
        return float(self.height * np.square(off).sum())


@dataclass(frozen=True)
class World:
    """All of it.

    Attributes:
        law, sizes: what a run comes to whose hyperparameters are the best, and what it costs.
        axes: the other hyperparameters.
        center: of the search.
        coupling: of the first two axes that matter, in (-1, 1).
        levels: of each category its loss, and how that moves with compute: ``(k, 2)``.
        conditional: an axis that only the first category has.
        mix: of the data.
        cliff: the distance of the first axis above its optimum from which on runs fail.
    """

    law: Law
    sizes: Sizes
    axes: Sequence[Axis]
    center: Values
    coupling: float
    levels: FloatArray
    conditional: Axis | None
    mix: Mix | None
    cliff: float

    def loss(self, values: Values) -> float:
        n, d = self.sizes.of(values)
        active = [*self.axes, *([self.conditional] if self.conditional else [])]
        active = [axis for axis in active if axis.param.name in values]
        u = {axis.param.name: axis.distance(values[axis.param.name], n, d) for axis in active}
        bad = sum(axis.bowl(u[axis.param.name]) for axis in active)
        if self.coupling:
            one, other = [axis for axis in self.axes if axis.height > 0][:2]
            v, w = u[one.param.name], u[other.param.name]
            both = v * w / (one.damping(v) * other.damping(w))
            bad += 2 * self.coupling * math.sqrt(one.height * other.height) * both
        bad += self.sizes.shape_loss(values, self.center)
        if "kind" in values:
            bad += float(self._of_category(int(values["kind"][1:]), n, d))
        if self.mix is not None:
            bad += self.mix.bad(np.array(list(values["mix"].values())), n, d)
        return float(self.law.with_bad(n, d, bad))

    def fails(self, values: Values) -> bool:
        n, d = self.sizes.of(values)
        if n > self.sizes.most_n or d - n > self.sizes.most_ratio + 1e-9:
            return True
        first = self.axes[0]
        u = first.distance(values[first.param.name], n, d) / first.skew
        return bool(first.height > 0 and u > self.cliff)

    def optimum(self, cost: float) -> tuple[dict[str, Any], float] | None:
        """The best configuration at that cost, and its loss: over N, and over the categories."""
        n, d = self.sizes.splits(cost)
        if not len(n):
            return None
        of_categories = np.array([self._of_category(i, n, d) for i in range(len(self.levels))])
        losses = self.law.with_bad(n, d, of_categories.min(axis=0))
        i = int(np.argmin(losses))
        n_best, d_best, kind = float(n[i]), float(d[i]), f"c{of_categories[:, i].argmin()}"
        best: dict[str, Any] = {**self.sizes.values(n_best, d_best, self.center)}
        best |= {axis.param.name: axis.optimum(n_best, d_best) for axis in self.axes}
        if "kind" in self.center:
            best["kind"] = kind
        if self.conditional and kind == "c0":
            best[self.conditional.param.name] = self.conditional.optimum(n_best, d_best)
        if self.mix is not None:
            weights = self.mix.target(n_best, d_best).tolist()
            best["mix"] = dict(zip(self.center["mix"], weights, strict=True))
        return best, float(losses[i])

    def _of_category(self, i: int, n: Any, d: Any) -> Any:
        return np.maximum(self.levels[i, 0] + self.levels[i, 1] * (n + d), 0.0)
