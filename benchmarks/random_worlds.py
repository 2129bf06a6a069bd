"""Random training tasks, wider than anything the search was made for, with their best fronts known.

A world is drawn from its number alone. Even numbers are the half on which choices are made
(``choose``), odd ones the half on which they are reported (``report``). Most are those of
``world_model.py``; an all-discrete one is enumerated. Optimizers that need bounds are given wide
ones where the world has none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from tasks import N_FRONT, Task, Values
from world_model import Axis, Law, Mix, Sizes, World

from carbs import (
    ChoiceSpace,
    LinearSpace,
    LogitSpace,
    LogSpace,
    MixtureSpace,
    Param,
    SearchSpace,
)
from carbs.pareto import pareto_front
from carbs.spaces import FloatArray

HALVES = {"choose": 0, "report": 1}
MOST_AXES = 18


def world(number: int, is_wasteful: bool = False) -> Task:
    """The task of that number; a wasteful one's small models leave the machine idle."""
    rng = np.random.default_rng([20261127, number])
    waste = (0.0, 0.0)
    if is_wasteful:
        of_waste = np.random.default_rng([20261130, number])
        waste = (10 ** of_waste.uniform(-1, 1), of_waste.uniform(0.0, 0.7))
    is_discrete = rng.random() < 0.1
    for _ in range(200):
        name = f"world-{number}"
        task = _discrete(rng, name) if is_discrete else _draw(rng, name, waste)
        if task is not None:
            return task
    raise RuntimeError(f"world {number}: no centre that can be trained in 200 draws")


def _draw(rng: np.random.Generator, name: str, waste: tuple[float, float]) -> Task | None:
    """None where the centre cannot be trained, or is nearly the best there is."""
    draw = Draw(rng)
    law, reach = draw.law(), 10 ** rng.uniform(1.5, 3.5)  # of the cap over the centre's cost
    sizes = draw.sizes(reach)
    sizes.waste, sizes.waste_power = waste if len(sizes.params) > 1 else (0.0, 0.0)
    n_axes = int(rng.integers(1, 7)) if rng.random() < 0.5 else int(rng.integers(7, MOST_AXES + 1))
    axes = [draw.axis(f"x{i}") for i in range(n_axes)]
    params = [*sizes.params, *(axis.param for axis in axes)]
    is_coupled = sum(axis.height > 0 for axis in axes) > 1 and rng.random() < 0.5
    coupling = rng.uniform(-0.7, 0.7) if is_coupled else 0.0

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
        space = MixtureSpace(names, **draw.scale(1.0))
        params.append(Param("mix", space, dict.fromkeys(names, 1 / len(names))))
    constraints = []
    if math.isfinite(sizes.most_ratio):
        constraints.append(f"D <= {10**sizes.most_ratio * sizes.d_0 / sizes.n_0!r} * N")
    cliff = rng.uniform(1.7, 4.5) if rng.random() < 0.6 else math.inf
    noise, cost_noise = rng.choice([0.0, 0.002, 0.01, 0.02]), rng.choice([0.0, 0.03, 0.3])
    center = SearchSpace(params, constraints).center_params
    world = World(law, sizes, axes, center, coupling, levels, conditional, mix, cliff)

    cap = sizes.cost(center) * reach
    cheapest = sizes.cost(center) * (0.3 if sizes.overhead < 0.5 else 1.0)
    costs, losses = np.geomspace(cheapest, cap, N_FRONT), []
    for c in costs:
        best = world.optimum(c)
        if best is None:
            return None
        losses.append(best[1])
    if world.fails(center) or world.loss(center) - losses[-1] < 0.1 * law.part:
        return None
    return Task(
        name,
        params,
        world.loss,
        sizes.cost,
        world.fails,
        noise * losses[-1],
        cap,
        math.inf,
        (costs, np.minimum.accumulate(losses)),
        cost_noise=cost_noise,
        constraints=constraints,
        bounded=[draw.wide.get(param.name, param) for param in params],
        optimum=world.optimum,
    )


def _discrete(rng: np.random.Generator, name: str) -> Task | None:
    """A few hundred configurations, of whole numbers and choices, each of them known."""
    draw = Draw(rng)
    law, noise = draw.law(), rng.choice([0.0, 0.002, 0.02])
    most_n, most_d = int(rng.integers(2, 6)), int(rng.integers(3, 8))
    whole = {"is_integer": True}
    params = [
        Param("N", LogSpace(min=1, max=2**most_n, **draw.scale(0.3), **whole), 1),
        Param("D", LinearSpace(min=1, max=most_d, **draw.scale(1.0), **whole), 1),
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


class Draw:
    """Draws the parts of one world.

    Scales are left out in half of the worlds, and misstated by up to ten either way in a quarter. A
    range is tight, wide or open, and whatever it is, ``wide`` has bounds for those who need them.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        at = rng.random()
        self.is_off, self.is_stated = at < 0.5, at % 0.5 < 0.25
        self.wide: dict[str, Param] = {}

    def scale(self, true: float) -> dict[str, float]:
        """As the user states it, if at all."""
        stated = true * 10 ** self.rng.uniform(-1, 1) if self.is_off else true
        return {"scale": stated} if self.is_stated else {}

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
        fields |= self.scale(scale)

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
