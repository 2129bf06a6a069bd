"""Random training tasks, wider than anything the search was made for, with their best fronts known.

    python benchmarks/worlds.py --worlds 60 --half report --optimizers carbs "optuna TPE" random
    python benchmarks/worlds.py --worlds 60 --half choose --change exponent=0.3 --change margin=2

A world is drawn from its number alone. Even numbers are the half on which choices are made
(``choose``), odd ones the half on which they are reported (``report``). ``--change`` runs today's
code with constants of the search replaced beside today's code, in pairs.

Notation
--------
N, D      parameters, tokens; n, d their logarithms to base 10, over those of the search centre
loss      E + A 10^(-a n) + B 10^(-b d) + (reducible part at the centre) * sum_i h_i p(u_i) + ...
u_i       distance of hyperparameter i from its optimum, in its own true scale; the optimum moves as
          a power of N and D; p is a bowl, steeper on one side, that flattens far away
front     every p is zero at the optimum, so that the best loss at a cost is a minimum over N alone
          (over the categories too), taken on a fine grid; where N is made of width and depth it is
          reached but for their rounding. An all-discrete world is enumerated.

The scores are those of ``tasks.py``, at 25, 50 and 100 trials. Optimizers that need bounds are
given wide ones where the world has none.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import numpy as np
from rich.console import Console
from rich.table import Table
from search import OPTIMIZERS, THREADS, Search, search, start_worker
from tasks import N_FRONT, Task, Values

from carbs import (
    ChoiceSpace,
    LinearSpace,
    LogitSpace,
    LogSpace,
    MixtureSpace,
    Param,
    SearchSpace,
    acquisition,
    allowance,
    gaussian_process,
    optimizer,
    surrogate,
)
from carbs.pareto import pareto_front
from carbs.spaces import FloatArray

N_TRIALS = (25, 50, 100)
HALVES = {"choose": 0, "report": 1}
MOST_AXES = 18
# What --change can replace.
CONSTANTS = {
    "exponent": (allowance, "_COST_EXPONENT"),
    "half_life": (allowance, "_HALF_LIFE"),
    "initial": (optimizer, "_INITIAL_RADIUS"),
    "margin": (optimizer, "_TRUST_MARGIN"),
    "growth": (optimizer, "_TRUST_GROWTH"),
    "n_initial": (optimizer, "_N_INITIAL"),
    "straying": (surrogate, "_STRAYING"),
    "beyond": (acquisition, "_BEYOND_CAP"),
    "below": (acquisition, "_BELOW_CENTER"),
    "trend": (gaussian_process, "_TREND"),
    "curvature": (surrogate, "_CURVATURE"),
}


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
    """

    params: list[Param]
    n_0: float
    d_0: float
    overhead: float = 0.0
    aspect: float | None = None
    most_n: float = math.inf
    most_ratio: float = math.inf
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)

    def of(self, values: Values) -> tuple[float, float]:
        """n and d."""
        n = 0.0
        if self.aspect is not None:
            n = math.log10(12 * values["width"] ** 2 * values["depth"] / self.n_0)
        elif "N" in values:
            n = math.log10(values["N"] / self.n_0)
        return n, math.log10(values["D"] / self.d_0)

    def cost(self, values: Values) -> float:
        return float(self.overhead + 10 ** sum(self.of(values)))

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
        d = math.log10(max(cost - self.overhead, 1e-9)) - n
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


class Draw:
    """Draws the parts of one world.

    A scale is misstated by up to ten either way in half of the worlds. A range is tight, wide or
    open, and whatever it is, ``wide`` has bounds for those who need them.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.is_misstated = rng.random() < 0.5
        self.wide: dict[str, Param] = {}

    def scale(self, true: float) -> float:
        return true * 10 ** self.rng.uniform(-1, 1) if self.is_misstated else true

    def param(
        self,
        name: str,
        space: type,
        scale: float,
        low: float,
        high: float,
        center: Any,
        when: Mapping[str, str] | None = None,
        least: float = -math.inf,
        **fields: Any,
    ) -> Param:
        """A numeric parameter whose interesting range is from low to high."""
        kind = str(self.rng.choice(["tight", "wide", "none"]))
        fields["scale"] = self.scale(scale)

        def bounded(more: float) -> Param:
            if space is LinearSpace:
                a, b = low - more * (high - low), high + more * (high - low)
            elif space is LogitSpace:
                a, b = 1e-4, 1 - 1e-4
            else:
                a, b = low * 10**-more, high * 10**more
            if fields.get("is_integer"):
                step = fields.get("rounding_factor", 1)
                a, b = math.floor(a / step) * step, math.ceil(b / step) * step
            return Param(name, space(min=max(a, least), max=b, **fields), center, when)

        self.wide[name] = bounded(1.5)
        if kind == "none":
            return Param(name, space(**fields), center, when)
        return bounded(0.2 if kind == "tight" else 1.5)

    def sizes(self, reach: float) -> Sizes:
        rng = self.rng
        kind = str(rng.choice(["N, D", "width, depth, D", "D", "seconds"]))
        n_0, d_0 = 10 ** rng.uniform(5, 8), 10 ** rng.uniform(7, 10)
        width, depth = 16 * 2 ** int(rng.integers(1, 5)), int(rng.integers(2, 9))
        params, aspect, overhead = [], None, 0.0
        if kind == "width, depth, D":
            n_0, aspect = 12 * width**2 * depth, rng.uniform(1.0, 2.0)
            most = math.sqrt(reach)
            whole = {"is_integer": True}
            eights = {**whole, "rounding_factor": 8}
            params += [
                self.param("width", LogSpace, 0.3, width, width * most, width, least=8, **eights),
                self.param("depth", LogSpace, 0.3, depth, depth * most, depth, least=1, **whole),
            ]
        elif kind != "D":
            params.append(self.param("N", LogSpace, 0.5, n_0, n_0 * reach, n_0))
            overhead = 10 ** rng.uniform(-1, 1) if kind == "seconds" else 0.0
        params.append(self.param("D", LogSpace, 0.5, d_0, d_0 * reach, d_0))
        sizes = Sizes(params, n_0, d_0, overhead, aspect)
        centers = {"N": n_0, "D": d_0}
        sizes.limits = {
            param.name: (_log_over(low, centers[param.name]), _log_over(high, centers[param.name]))
            for param in params
            if param.name in centers
            for low, high in [param.space.limits()]
        }
        if kind != "D" and rng.random() < 0.3:
            sizes.most_n = rng.uniform(0.5, 1.0) * math.log10(reach)
        if kind == "N, D" and rng.random() < 0.4:
            sizes.most_ratio = rng.uniform(0.2, 1.5)
        return sizes

    def axis(self, name: str, when: Mapping[str, str] | None = None) -> Axis:
        rng = self.rng
        kind = str(rng.choice(["log", "log", "log", "linear", "logit", "integer"]))
        height = 0.0 if rng.random() < 0.25 else 10 ** rng.uniform(-2, -0.5)
        skew = 1.0 if rng.random() < 0.5 else rng.uniform(1.0, 3.0)
        plateau = rng.uniform(2, 8)
        off = float(np.clip(rng.normal(0, 0.7), -2, 2))
        by_n, by_d = (0.0, 0.0) if rng.random() < 0.4 else rng.uniform(-0.5, 0.3, 2)
        if kind == "linear":
            width = 10 ** rng.uniform(-1, 2)
            best = rng.uniform(-5, 5) * width
            center = best + 2 * off * width
            low, high = min(best, center) - width, max(best, center) + width
            param = self.param(name, LinearSpace, width, low, high, center, when)
            moves = by_n * width, by_d * width
            return Axis(param, height, width, best, *moves, skew, plateau, float, float)
        if kind == "logit":
            best, width = rng.uniform(-1.5, 1.5), rng.uniform(0.3, 1.0)
            center = float(np.clip(_fraction(best + off), 1e-3, 1 - 1e-3))
            param = self.param(name, LogitSpace, width, 0, 1, center, when)
            return Axis(param, height, width, best, by_n, by_d, skew, plateau, _odds, _fraction)
        width = rng.uniform(0.3, 1.0)
        best = rng.uniform(1, 3) if kind == "integer" else rng.uniform(-5, 1)
        center = 10 ** (best + off)
        low, high = 10 ** (min(best, best + off) - 1), 10 ** (max(best, best + off) + 1)
        if kind == "integer":
            center, whole = max(round(center), 1), {"is_integer": True, "least": 1}
        else:
            whole = {}
        param = self.param(name, LogSpace, width, low, high, center, when, **whole)
        moves = by_n, by_d
        return Axis(param, height, width, best, *moves, skew, plateau, math.log10, _power)

    def categories(self) -> FloatArray:
        """The level of each, and how it moves with compute: ``(k, 2)``."""
        k = int(self.rng.integers(2, 6))
        levels, moves = self.rng.uniform(0, 0.25, k), self.rng.normal(0, 0.05, k)
        return np.stack([levels, moves], axis=1)

    def mix(self) -> Mix:
        k = int(self.rng.integers(2, 9))
        best = self.rng.dirichlet(np.full(k, self.rng.uniform(0.5, 2.0)))
        return Mix(best, self.rng.normal(0, 0.15, k), self.rng.uniform(0.05, 0.6))

    def law(self) -> Law:
        rng = self.rng
        a, b = rng.uniform(0.15, 0.5, 2)
        return Law(rng.uniform(0.3, 2.0), rng.uniform(0.3, 2.0), rng.uniform(0.3, 0.7), a, b)


def _log_over(x: float, center: float) -> float:
    return math.log10(x / center) if x > 0 else -math.inf


def _odds(x: float) -> float:
    return math.log10(x / (1 - x))


def _fraction(u: float) -> float:
    return 1 / (1 + 10**-u)


def _power(u: float) -> float:
    return 10**u


def world(number: int) -> Task:
    """The task of that number."""
    rng = np.random.default_rng([20261127, number])
    draw = _discrete if rng.random() < 0.1 else _draw
    for _ in range(200):
        task = draw(rng, f"world-{number}")
        if task is not None:
            return task
    raise RuntimeError(f"world {number}: no centre that can be trained in 200 draws")


def _draw(rng: np.random.Generator, name: str) -> Task | None:
    """None where the centre cannot be trained, or is nearly the best there is."""
    draw = Draw(rng)
    law, reach = draw.law(), 10 ** rng.uniform(1.5, 3.5)  # of the cap over the centre's cost
    sizes = draw.sizes(reach)
    n_axes = int(rng.integers(1, 7)) if rng.random() < 0.5 else int(rng.integers(7, MOST_AXES + 1))
    axes = [draw.axis(f"x{i}") for i in range(n_axes)]
    params = [*sizes.params, *(axis.param for axis in axes)]
    smooth = [axis for axis in axes if axis.height > 0]
    coupled = len(smooth) > 1 and rng.random() < 0.5
    coupling = rng.uniform(-0.7, 0.7) if coupled else 0.0

    levels, conditional = np.zeros((1, 2)), None
    if rng.random() < 0.5:
        levels = draw.categories()
        labels = [f"c{i}" for i in range(len(levels))]
        params.append(Param("kind", ChoiceSpace(labels), labels[int(rng.integers(len(labels)))]))
        if rng.random() < 0.5:
            conditional = draw.axis("only_c0", when={"kind": "c0"})
            params.append(conditional.param)
    mix = draw.mix() if rng.random() < 0.3 else None
    if mix is not None:
        names = [f"m{i}" for i in range(len(mix.best))]
        space = MixtureSpace(names, scale=draw.scale(1.0))
        params.append(Param("mix", space, dict.fromkeys(names, 1 / len(names))))
    constraints = []
    if math.isfinite(sizes.most_ratio):
        constraints.append(f"D <= {10**sizes.most_ratio * sizes.d_0 / sizes.n_0!r} * N")
    cliff = rng.uniform(1.7, 4.5) if rng.random() < 0.6 else math.inf
    noise, cost_noise = rng.choice([0.0, 0.002, 0.01, 0.02]), rng.choice([0.0, 0.03, 0.3])
    center = SearchSpace(params, constraints).center_params

    def of_category(i: int, n: Any, d: Any) -> Any:
        return np.maximum(levels[i, 0] + levels[i, 1] * (n + d), 0.0)

    def loss(values: Values) -> float:
        n, d = sizes.of(values)
        active = [*axes, *([conditional] if conditional else [])]
        active = [axis for axis in active if axis.param.name in values]
        u = {axis.param.name: axis.distance(values[axis.param.name], n, d) for axis in active}
        bad = sum(axis.bowl(u[axis.param.name]) for axis in active)
        if coupled:
            one, other = smooth[:2]
            v, w = u[one.param.name], u[other.param.name]
            both = v * w / (one.damping(v) * other.damping(w))
            bad += 2 * coupling * math.sqrt(one.height * other.height) * both
        bad += sizes.shape_loss(values, center)
        if "kind" in values:
            bad += float(of_category(int(values["kind"][1:]), n, d))
        if mix is not None:
            bad += mix.bad(np.array(list(values["mix"].values())), n, d)
        return float(law.with_bad(n, d, bad))

    def fails(values: Values) -> bool:
        n, d = sizes.of(values)
        if n > sizes.most_n or d - n > sizes.most_ratio + 1e-9:
            return True
        first = axes[0]
        u = first.distance(values[first.param.name], n, d) / first.skew
        return bool(first.height > 0 and u > cliff)

    def optimum(cost: float) -> tuple[dict[str, Any], float] | None:
        """Over N, and over the categories."""
        n, d = sizes.splits(cost)
        if not len(n):
            return None
        of_categories = np.array([of_category(i, n, d) for i in range(len(levels))])
        losses = law.with_bad(n, d, of_categories.min(axis=0))
        i = int(np.argmin(losses))
        n_best, d_best, kind = float(n[i]), float(d[i]), f"c{of_categories[:, i].argmin()}"
        best: dict[str, Any] = {**sizes.values(n_best, d_best, center)}
        best |= {axis.param.name: axis.optimum(n_best, d_best) for axis in axes}
        if "kind" in center:
            best["kind"] = kind
        if conditional and kind == "c0":
            best[conditional.param.name] = conditional.optimum(n_best, d_best)
        if mix is not None:
            best["mix"] = dict(zip(center["mix"], mix.target(n_best, d_best).tolist(), strict=True))
        return best, float(losses[i])

    cap = sizes.cost(center) * reach
    cheapest = sizes.cost(center) * (0.3 if sizes.overhead < 0.5 else 1.0)
    costs, losses = np.geomspace(cheapest, cap, N_FRONT), []
    for c in costs:
        best = optimum(c)
        if best is None:
            return None
        losses.append(best[1])
    if fails(center) or loss(center) - losses[-1] < 0.1 * law.part:
        return None
    front = costs, np.minimum.accumulate(losses)
    bounded = [draw.wide.get(param.name, param) for param in params]
    return Task(
        name,
        params,
        loss,
        sizes.cost,
        fails,
        noise * losses[-1],
        cap,
        math.inf,
        front,
        cost_noise=cost_noise,
        constraints=constraints,
        bounded=bounded,
        optimum=optimum,
    )


def _discrete(rng: np.random.Generator, name: str) -> Task | None:
    """A few hundred configurations, of whole numbers and choices, each of them known."""
    draw = Draw(rng)
    law, noise = draw.law(), rng.choice([0.0, 0.002, 0.02])
    most_n, most_d = int(rng.integers(2, 6)), int(rng.integers(3, 8))
    whole = {"is_integer": True}
    params = [
        Param("N", LogSpace(min=1, max=2**most_n, scale=draw.scale(0.3), **whole), 1),
        Param("D", LinearSpace(min=1, max=most_d, scale=draw.scale(1.0), **whole), 1),
    ]
    tables = []
    for i in range(int(rng.integers(1, 4))):
        k = int(rng.integers(2, 6))
        labels = [f"c{j}" for j in range(k)]
        params.append(Param(f"x{i}", ChoiceSpace(labels), labels[int(rng.integers(k))]))
        tables.append(np.stack([rng.uniform(0, 0.4, k), rng.normal(0, 0.1, k)]))
    space = SearchSpace(params)
    points = space.all_points(10_000)
    assert points is not None

    def sizes(values: Values) -> tuple[float, float]:
        return math.log10(values["N"]), values["D"] - 1.0

    def loss(values: Values) -> float:
        n, d = sizes(values)
        bad = 0.0
        for i, (level, move) in enumerate(tables):
            j = int(values[f"x{i}"][1:])
            bad += max(level[j] + move[j] * (n + d), 0.0)
        return float(law.with_bad(n, d / 3, bad))

    def cost(values: Values) -> float:
        return float(values["N"] * 2 ** values["D"])

    configurations = [space.decode(z) for z in points]
    cap = max(cost(values) for values in configurations)
    log_costs = np.array([math.log(cost(values)) for values in configurations])
    losses = np.array([loss(values) for values in configurations])
    if loss(space.center_params) - losses.min() < 0.1 * law.part:
        return None
    front = pareto_front(log_costs, losses)
    ends = [*log_costs[front][1:], math.log(cap)]
    # Level up to the next point, so that its area is exact.
    steps = np.array([(a, b) for a, b in zip(log_costs[front], ends, strict=True)]).ravel()
    levels = np.repeat(losses[front], 2)
    return Task(
        name,
        params,
        loss,
        cost,
        lambda values: False,
        noise * losses.min(),
        cap,
        math.inf,
        (np.exp(steps), levels),
    )


def scores(task: Task, found: Search) -> list[float]:
    """hv at each number of trials, regret in percent, the share of the trials that failed.

    Where there is a budget, at that share of it if it is reached earlier.
    """
    row = []
    for n_trials in N_TRIALS:
        share = n_trials / N_TRIALS[-1]
        n = min(n_trials, sum(spent <= share * task.budget + 1e-9 for spent in found.spent))
        ended = zip(found.tried[:n], found.observed[:n], strict=True)
        good = [values for values, loss in ended if loss < math.inf]
        row.append(task.hypervolume(good) if good else 0.0)
    best = found.tried[int(np.argmin(found.observed))]
    return [*row, task.regret(best), float(np.mean(np.isinf(found.observed)))]


@contextmanager
def changed(changes: Mapping[str, float]) -> Iterator[None]:
    """Constants of the search replaced, and the fits that were made with others forgotten."""
    for fitted in (surrogate._output_kernel, surrogate._cost_kernel, surrogate._success_kernel):
        fitted.cache_clear()
    with ExitStack() as stack:
        for name, value in changes.items():
            stack.enter_context(
                patch.object(*CONSTANTS[name], type(getattr(*CONSTANTS[name]))(value))
            )
        yield


@dataclass(frozen=True)
class Run:
    scores: list[float]
    covered: list[tuple[bool, bool]]


def limited(task: Task, number: int, limits: str, is_told: bool) -> Task:
    """With a budget of 3 to 30 runs at the cap where ``limits`` says so, beside 100 trials."""
    budget = task.cap * 10 ** np.random.default_rng([7, number]).uniform(0.5, 1.5)
    told: dict[str, Any] = {}
    if limits in ("trials", "both"):
        told["n_trials"] = N_TRIALS[-1]
    if limits in ("budget", "both"):
        task, told["budget"] = replace(task, budget=budget), budget
    return replace(task, told=told if is_told else {})


def run(
    label: str,
    number: int,
    seed: int,
    in_flight: int,
    changes: Mapping[str, float],
    limits: str = "none",
    is_told: bool = True,
) -> Run:
    task = limited(world(number), number, limits, is_told)
    with changed(changes):
        optimizer_ = OPTIMIZERS[label](task, seed)
        found = search(task, optimizer_, 1000 + seed, in_flight, N_TRIALS[-1])
    return Run(scores(task, found), getattr(optimizer_, "covered", [])[20:])


def summary(rows: FloatArray) -> list[str]:
    """Mean and worst decile of each hv, the worst of the last, and mean and median regret."""
    cells = [f"{x.mean():.3f} / {np.quantile(x, 0.1):.3f}" for x in rows.T[:3]]
    regret = rows[:, 3]
    return [*cells, f"{rows[:, 2].min():.3f}", f"{regret.mean():.2f} / {np.median(regret):.2f}"]


def difference(rows: FloatArray, base: FloatArray) -> list[str]:
    """Paired: mean difference and its standard error of each score, and of the worst decile."""
    change = rows - base
    errors = change.std(axis=0, ddof=1) / math.sqrt(len(change))
    cells = [f"{m:+.3f} ± {e:.3f}" for m, e in zip(change.mean(axis=0)[:4], errors, strict=False)]
    tenth = np.quantile(rows[:, 2], 0.1) - np.quantile(base[:, 2], 0.1)
    return [*cells[:3], f"{tenth:+.3f}", cells[3]]


def _change(text: str) -> dict[str, float]:
    """``exponent=0.3,margin=2``"""
    pairs = (item.split("=") for item in text.split(","))
    return {name: float(value) for name, value in pairs}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=60)
    parser.add_argument("--half", choices=list(HALVES), default="report")
    parser.add_argument("--optimizers", nargs="+", choices=list(OPTIMIZERS), default=["carbs"])
    parser.add_argument("--change", type=_change, action="append", default=[], dest="changes")
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limits", choices=["none", "trials", "budget", "both"], default="none")
    parser.add_argument("--jobs", type=int, default=2, help="searches at once, one thread each")
    parsed = parser.parse_args(arguments)
    os.environ.update(dict.fromkeys(THREADS, "1"))
    numbers = [2 * i + HALVES[parsed.half] for i in range(parsed.worlds)]
    variants: dict[str, tuple[str, dict[str, float]]] = {
        label: (label, {}) for label in parsed.optimizers
    }
    if parsed.limits != "none":
        variants["carbs, not told"] = "carbs", {}
    for changes in parsed.changes:
        variants[", ".join(f"{k}={v:g}" for k, v in changes.items())] = "carbs", changes
    table = Table("", "hv 25", "hv 50", "hv 100", "worst", "regret %", "covered")
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(parsed.jobs, context, start_worker) as pool:
        futures = {
            variant: [
                pool.submit(
                    run,
                    label,
                    n,
                    parsed.seed,
                    parsed.in_flight,
                    changes,
                    parsed.limits,
                    variant != "carbs, not told",
                )
                for n in numbers
            ]
            for variant, (label, changes) in variants.items()
        }
        base: FloatArray | None = None
        for variant, ones in futures.items():
            runs = [one.result() for one in ones]
            rows = np.array([one.scores for one in runs])
            covered = [pair for one in runs for pair in one.covered]
            inside = " ".join(f"{x:.0%}" for x in np.mean(covered, axis=0)) if covered else ""
            table.add_row(variant, *summary(rows), inside)
            if base is not None:
                table.add_row("", *difference(rows, base), "")
            base = rows if base is None else base
            print(variant, *summary(rows), inside, flush=True)
    table.title = (
        f"{parsed.worlds} worlds ({parsed.half}), {parsed.in_flight} in flight: mean / worst "
        "decile; below, differences from the first row, of the worst decile in the column 'worst'"
    )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
