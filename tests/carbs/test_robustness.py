"""Whatever the space, the records and the order of events, a search goes on and keeps its promises.

``CARBS_N_SPACES=200 pytest tests/carbs/test_robustness.py -k random_space`` tries more spaces.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carbs import (
    CARBS,
    ChoiceSpace,
    LinearSpace,
    LogitSpace,
    LogSpace,
    MixtureSpace,
    Param,
    SearchSpace,
    Suggestion,
)
from carbs.space import Params

N_SPACES = int(os.environ.get("CARBS_N_SPACES", "30"))
N_TRIALS = 40
N_CERTAIN = 10  # from so many runs on the cost model has a say


def maybe(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def some(rng: np.random.Generator, low: Any, high: Any) -> dict[str, Any]:
    """Either bound may be left out."""
    return {k: v for k, v in (("min", low), ("max", high)) if maybe(rng, 0.5)}


def random_number(rng: np.random.Generator) -> tuple[Any, Any]:
    """A numeric space and its centre, which may lie on a bound."""
    below, above = rng.uniform(0, 3) * maybe(rng, 0.8), rng.uniform(0.1, 3)
    match rng.choice(["linear", "log", "logit", "integer", "log integer"]):
        case "linear":
            scale = float(10 ** rng.uniform(-3, 3))
            center = float(rng.normal() * 10 ** rng.uniform(-3, 3))
            low, high = center - below * scale, center + above * scale
            return LinearSpace(scale=scale, **some(rng, low, high)), center
        case "log":
            center = float(10 ** rng.uniform(-8, 8))
            low, high = center * 10**-below, center * 10**above
            return LogSpace(scale=rng.uniform(0.1, 1), **some(rng, low, high)), center
        case "logit":
            odds = 10 ** rng.uniform(-4, 4)
            low, center, high = (
                float(o / (1 + o)) for o in (odds * 10**-below, odds, odds * 10**above)
            )
            return LogitSpace(scale=rng.uniform(0.1, 1), **some(rng, low, high)), center
        case "integer":
            step, k = int(rng.choice([1, 2, 16])), int(rng.integers(-20, 20))
            bounds = some(rng, (k - 5 * below) * step, (k + 2 + 5 * above) * step)
            scale = float(step * 10 ** rng.uniform(-0.5, 1))
            space = LinearSpace(scale=scale, is_integer=True, rounding_factor=step, **bounds)
            return space, k * step
    step, k = int(rng.choice([1, 2, 64])), int(10 ** rng.uniform(0, 5))
    bounds = some(rng, k * 10**-below * step, (k * 10**above + 2) * step)
    scale = rng.uniform(0.1, 1)
    return LogSpace(scale=scale, is_integer=True, rounding_factor=step, **bounds), k * step


def random_param(rng: np.random.Generator, name: str, room: int, earlier: Sequence[Param]) -> Param:
    """A parameter of at most ``room`` basic dimensions, which may depend on an earlier one."""
    when = {}
    parents = [param for param in earlier if isinstance(param.space, ChoiceSpace)]
    if parents and maybe(rng, 0.4):
        parent = parents[rng.integers(len(parents))]
        choices = parent.space.choices
        when = {parent.name: choices[: rng.integers(1, len(choices))]}
    n = int(rng.integers(2, 5))
    kind = rng.choice(["number", "choice", "mixture"], p=[0.6, 0.25, 0.15]) if n <= room else ""
    if kind == "choice":
        choices = [["a", "b", "", "d"], [1, 2.5, -3, 0], [True, "a", 7, False]][rng.integers(3)]
        return Param(name, ChoiceSpace(choices[:n]), choices[rng.integers(n)], when)
    if kind == "mixture":
        names = ["code", "prose", "web", "maths"][:n]
        center = rng.dirichlet(np.full(n, 0.5))
        tight = float(rng.choice([0.0, 0.5, 0.9]))
        low, high = tight * center, tight * center + (1 - tight)
        bounds = {
            bound: dict(zip(names, map(float, values), strict=True))
            for bound, values in some(rng, low, high).items()
        }
        space = MixtureSpace(names, scale=rng.uniform(0.2, 2), **bounds)
        return Param(name, space, dict(zip(names, map(float, center), strict=True)), when)
    return Param(name, *random_number(rng), when)


def random_constraint(rng: np.random.Generator, params: Sequence[Param]) -> Any:
    """An expression, or a function, that the centre meets."""
    numbers = [p for p in params if not isinstance(p.space, (ChoiceSpace, MixtureSpace))]
    slack = float(rng.exponential(0.3))
    if numbers and maybe(rng, 0.5):
        a, b = (numbers[i] for i in rng.integers(len(numbers), size=2))
        limit = a.search_center + slack * (a.space.scale + abs(a.search_center))
        other = b.search_center - slack * (b.space.scale + abs(b.search_center))
        divisor = next(k for k in (3, 2, 0.5) if a.search_center % k == 0 or k == 0.5)
        expressions = [
            f"{a.name} <= {limit!r}",
            f"{a.name} <= {limit!r} and {b.name} >= {other!r}",
            f"{a.name} - {b.name} <= {a.search_center - b.search_center + slack!r}",
            f"{a.name} <= {limit!r} or {b.name} / {a.name} > 0",
        ]
        if a.space.is_integer:
            expressions.append(f"{a.name} % {divisor} == 0")
        return expressions[rng.integers(len(expressions))]
    space = SearchSpace(params)
    direction = rng.normal(size=space.n_dims) * (rng.random(space.n_dims) < 0.5)
    if maybe(rng, 0.5):
        return lambda values: direction @ (space.encode(values) - space.center) <= slack
    return lambda values: np.abs(direction * (space.encode(values) - space.center)).max() <= slack


@dataclass(frozen=True)
class World:
    """A search space, and what comes of training in it, drawn with a seed.

    Attributes:
        center_log_cost: decimal logarithm of what the centre costs.
        noise: of the outputs, and of the decimal logarithm of costs.
        fail_rate: of runs, wherever they are; others fail in a region.
    """

    params: list[Param]
    constraints: list[Any]
    direction: Any
    max_cost: float | None
    shape: str
    output_scale: float
    output_offset: float
    noise: tuple[float, float]
    center_log_cost: float
    cost_slopes: Any
    valley: Any
    steepness: Any
    fail_direction: Any
    fail_rate: float

    @classmethod
    def of(cls, rng: np.random.Generator) -> World:
        n_dims = int(rng.integers(1, 31))
        params: list[Param] = []
        while (room := n_dims - sum(param.space.n_dims for param in params)) > 0:
            params.append(random_param(rng, f"p{len(params)}", room, params))
        constraints = [random_constraint(rng, params) for _ in range(rng.integers(0, 3))]
        center_log_cost = rng.uniform(-5, 5)
        limit = float(10 ** (center_log_cost + rng.uniform(-0.5, 3)))
        sparse = rng.random((4, n_dims)) < rng.choice([0.2, 1.0], size=(4, 1))
        return cls(
            [params[i] for i in rng.permutation(len(params))],
            constraints,
            rng.choice(["minimize", "maximize"]),
            limit if maybe(rng, 0.5) else None,
            rng.choice(["bowl", "law", "stairs", "cliff", "explosion", "noise", "constant"]),
            float(10 ** rng.uniform(-9, 9)),
            float(rng.choice([0.0, 1.0, -1e3])),
            (float(rng.choice([0.0, 0.01, 1.0])), float(rng.choice([0.0, 0.02, 0.3]))),
            center_log_cost,
            rng.normal(size=n_dims) * sparse[0] * rng.choice([0.0, 0.3, 2.0]),
            rng.normal(size=n_dims) * sparse[1],
            rng.exponential(size=n_dims) * sparse[2],
            rng.normal(size=n_dims) * sparse[3] * maybe(rng, 0.5),
            float(rng.choice([0.0, 0.0, 0.1, 0.5, 0.95])),
        )

    def train(self, z: Any, rng: np.random.Generator) -> tuple[float | None, float]:
        """Output, None of a failure, and cost, at a distance z from the centre."""
        log_cost = self.center_log_cost + np.clip(self.cost_slopes @ z, -5, 5)
        cost = float(10 ** (log_cost + self.noise[1] * rng.normal()))
        if self.fail_direction @ z > 1 or maybe(rng, self.fail_rate):
            return None, cost
        loss = float(self.steepness @ np.square(z - self.valley))
        loss = {
            "bowl": loss,
            "law": loss + 10 ** float(np.clip(-self.cost_slopes @ z, -9, 9)),
            "stairs": float(np.round(loss)),
            "cliff": loss + 1e6 * (loss > 2),
            "explosion": math.exp(min(loss**2, 600)),
            "noise": float(rng.standard_cauchy()),
            "constant": 0.0,
        }[self.shape]
        loss += self.output_offset + self.noise[0] * rng.normal()
        return self.output_scale * (loss if self.direction == "minimize" else -loss), cost


def assert_sound(suggestion: Suggestion, optimizer: CARBS, max_cost: float | None = None) -> None:
    """A configuration of its space that obeys the constraints, with finite predictions.

    Args:
        max_cost: where the cost model has a say. A suggestion breaks the limit knowingly if all of
            its 90% interval of costs lies above it.
    """
    space, params = optimizer.space, suggestion.params
    assert space.check(params) == params
    assert space.allows(params)
    for param in space.params:
        if param.name in params and not isinstance(param.space, (ChoiceSpace, MixtureSpace)):
            low, high = param.space.limits()
            assert low <= params[param.name] <= high  # type: ignore[operator]
            if param.space.is_integer:
                assert params[param.name] % param.space.rounding_factor == 0  # type: ignore[operator]
    if suggestion.predicted_output is None:
        assert len(optimizer.observations) < 2
        return
    low, high = suggestion.predicted_output_interval  # type: ignore[misc]
    assert -math.inf < low <= suggestion.predicted_output <= high < math.inf
    low, high = suggestion.predicted_cost_interval  # type: ignore[misc]
    assert 0 < low <= suggestion.predicted_cost <= high < math.inf  # type: ignore[operator]
    assert 0 <= suggestion.success_probability <= 1  # type: ignore[operator]
    assert max_cost is None or low <= max_cost


def go_on(optimizer: CARBS) -> Suggestion:
    suggestion = optimizer.suggest()
    assert_sound(suggestion, optimizer)
    return suggestion


@pytest.mark.parametrize("seed", range(N_SPACES))
def test_a_search_of_a_random_space(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    world = World.of(rng)
    optimizer = CARBS(
        world.params,
        constraints=world.constraints,
        direction=world.direction,
        max_cost=world.max_cost,
        seed=seed,
    )
    space = optimizer.space
    most_in_flight = int(rng.choice([1, 1, 4, 10]))
    has_accidents = maybe(rng, 0.5)
    n_suggested = 0

    def measure(asked: Suggestion | Params) -> None:
        params = asked.params if isinstance(asked, Suggestion) else asked
        output, cost = world.train(space.encode(params) - space.center, rng)
        if output is None:
            known = cost if maybe(rng, 0.5) else None
            optimizer.observe_failure(asked, reason="diverged", cost=known)
        else:
            is_lost = has_accidents and maybe(rng, 0.05)
            optimizer.observe(asked, output=math.nan if is_lost else output, cost=cost)

    while n_suggested < N_TRIALS:
        n_free = most_in_flight - len(optimizer.pending)
        for suggestion in optimizer.suggest(int(rng.integers(1, n_free + 1))):
            # The model has a say about the limit once it has seen costs on this side of it.
            costs = [observation.cost for observation in optimizer.observations]
            knows = world.max_cost and len(costs) >= N_CERTAIN and min(costs) < world.max_cost
            assert_sound(suggestion, optimizer, world.max_cost if knows else None)
            n_suggested += 1
        for i in rng.permutation(len(optimizer.pending))[: rng.integers(1, most_in_flight + 1)]:
            pending = optimizer.pending[min(i, len(optimizer.pending) - 1)]
            if has_accidents and maybe(rng, 0.1):
                optimizer.forget(pending)
                continue
            for _ in range(1 + has_accidents * int(rng.geometric(0.8) - 1)):
                measure(pending)
        if has_accidents and maybe(rng, 0.1):  # something of the user's own, allowed or not
            z = space.center + 3 * rng.normal(size=space.n_dims)
            measure(space.decode(space.snap(z[None, :])[0]))
    optimizer.save(tmp_path / "a.json")
    loaded = CARBS.load(tmp_path / "a.json", constraints=world.constraints)
    assert loaded.suggest(2) == optimizer.suggest(2)
