"""Whatever the space, the records and the order of events, a search goes on and keeps its promises.

``CARBS_N_SPACES=200 pytest tests/carbs/test_robustness.py -k random_space`` tries more spaces.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings, strategies as st
from scipy.optimize import OptimizeResult

from carbs import (
    CARBS,
    ChoiceSpace,
    Failure,
    LinearSpace,
    LogitSpace,
    LogSpace,
    MixtureSpace,
    Observation,
    Param,
    SearchSpace,
    Suggestion,
    gaussian_process,
    surrogate,
)
from carbs.gaussian_process import Data
from carbs.optimizer import propose
from carbs.spaces import Params
from carbs.surrogate import fit_surrogate

N_SPACES = int(os.environ.get("CARBS_N_SPACES", "20"))
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


PARAMS = [
    Param("size", LogSpace(scale=0.5, min=1, is_integer=True), 20),
    Param("rate", LogSpace(scale=0.5), 1e-2),
    Param("mix", MixtureSpace(["code", "prose"]), {"code": 0.5, "prose": 0.5}),
]
SPACE = SearchSpace(PARAMS)
CENTER = SPACE.center_params
# One record: where, as steps from the centre; output, None of a failure; cost, None if unknown.
Run = tuple[Sequence[float], float | None, float | None]


def runs(outputs: Any, costs: Any, spread: float = 1.0) -> list[Run]:
    """At random points: one for each pair of output and cost; a single one is repeated."""
    outputs, costs = np.broadcast_arrays(outputs, costs)
    Z = spread * np.random.default_rng(len(outputs)).normal(size=(len(outputs), 4))
    return [
        (z, None if output is None else float(output), None if cost is None else float(cost))
        for z, output, cost in zip(Z, outputs, costs, strict=True)
    ]


def told(history: Sequence[Run], **options: Any) -> CARBS:
    """An optimizer that has been told these runs, which nobody asked for."""
    optimizer = CARBS(PARAMS, **options)
    for z, output, cost in history:
        params = SPACE.decode(SPACE.snap(np.asarray(z)[None, :])[0])
        if output is None:
            optimizer.observe_failure(params, reason="diverged", cost=cost)
        else:
            optimizer.observe(params, output=output, cost=cost)  # type: ignore[arg-type]
    return optimizer


MANY = np.random.default_rng(0).normal(size=1000)
HISTORIES: dict[str, list[Run]] = {
    "one observation": runs([1.0], 1.0),
    "one failure": runs([None], [None]),
    "only failures": runs([None] * 30, [None, 0.0, 1e5] * 10),
    "one success among failures": runs([None] * 60 + [1.0], 1.0),
    "two successes among failures": runs([None] * 60 + [1.0, 2.0], 1.0),
    "a failure where others succeeded": runs([1.0, None, 2.0, None, 3.0], 1.0, spread=0),
    "identical outputs": runs([3.0] * 20, 10 ** MANY[:20]),
    "a thousand identical runs": runs([3.0] * 1000, 2.0, spread=0),
    "a thousand at one point": runs(MANY, 10**MANY, spread=0),
    "a thousand at one point, half of them failed": runs([None, 1.0] * 500, 2.0, spread=0),
    "a thousand nearly at one point": runs(MANY, 10**MANY, spread=1e-9),
    "costs over ten decades": runs(MANY[:40], 10 ** np.linspace(-5, 5, 40)),
    "costs at the ends of what numbers can be": runs(MANY[:40], [1e-300, 1e300] * 20),
    "outputs of 1e-12": runs(1e-12 * MANY[:20], 1.0),
    "outputs of 1e12": runs(1e12 * np.abs(MANY[:20]), 1.0),
    "outputs close to 1e12": runs(1e12 + MANY[:20], 1.0),
    "outputs of mixed signs and sizes": runs(np.sign(MANY[:40]) * 10 ** (9 * MANY[20:60]), 1.0),
    "one output of 1e300": runs([*MANY[:20], 1e300], 1.0),
    "one output of -1e300": runs([*MANY[:20], -1e300], 1.0),
    "far away": runs(MANY[:20], 1.0, spread=1e3),
    "one far away": [*runs(MANY[:20], 1.0), *runs([0.0], 1.0, spread=300)],
    "first one that is far away": [*runs([0.0], 1.0, spread=300), *runs(MANY[:20], 1.0)],
}


@pytest.mark.parametrize("order", ["as given", "reversed", "best first", "dearest first"])
@pytest.mark.parametrize("name", HISTORIES)
def test_a_search_goes_on_after_any_history(name: str, order: str) -> None:
    history = HISTORIES[name][:: -1 if order == "reversed" else 1]
    if order == "best first":
        history = sorted(history, key=lambda run: math.inf if run[1] is None else run[1])
    elif order == "dearest first":
        history = sorted(history, key=lambda run: -(run[2] or 0))
    direction = "maximize" if order == "reversed" else "minimize"
    optimizer = told(history, max_cost=2.0 if order == "best first" else None, direction=direction)
    suggestion = go_on(optimizer)
    optimizer.observe_failure(suggestion, reason="diverged")
    suggestion = go_on(optimizer)
    assert suggestion.success_probability is None or suggestion.success_probability < 1
    optimizer.observe(suggestion, output=math.nan, cost=1e-3)
    optimizer.observe(go_on(optimizer), output=1.0, cost=1e3)
    go_on(optimizer)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.tuples(*[st.integers(-2, 2) | st.floats(-50, 50)] * 4),
            st.none() | st.integers(0, 2) | st.floats(-1e300, 1e300),
            st.sampled_from([1.0, 2.0]) | st.floats(1e-300, 1e300),
        ),
        min_size=1,
        max_size=25,
    ),
    st.none() | st.floats(1e-300, 1e300),
)
def test_a_search_goes_on_after_any_records(history: list[Run], max_cost: float | None) -> None:
    optimizer = told(history, max_cost=max_cost)
    for suggestion in optimizer.suggest(2):
        assert_sound(suggestion, optimizer)


@pytest.mark.parametrize("distance", [1e3, 1e6, 1e9, 1e12, 1e18])
@pytest.mark.parametrize("when", [0, 3, -2, -1])
def test_a_run_at_an_absurd_distance_is_survived(distance: float, when: int) -> None:
    """As from a scale that is far too small; also one that the last fit has not seen."""
    for n, fails in itertools.product([22, 23, 40], [False, True]):
        optimizer = CARBS([Param("x", LinearSpace(), 1.0), Param("y", LogSpace(), 1.0)])
        rng = np.random.default_rng(n)
        points = rng.normal(size=(n, 2))
        points[when, 0] = distance
        for i, (x, y) in enumerate(points.tolist()):
            if fails and i % 4 == 0:
                optimizer.observe_failure({"x": x, "y": 10**y}, reason="diverged")
            else:
                output, cost = rng.normal(), 10 ** rng.normal()
                optimizer.observe({"x": x, "y": 10**y}, output=output, cost=cost)
        for suggestion in optimizer.suggest(2):
            assert_sound(suggestion, optimizer)


def test_failures_alone_bring_the_search_closer_to_a_centre_that_works() -> None:
    optimizer = CARBS(PARAMS)
    optimizer.observe(go_on(optimizer), output=1.0, cost=1.0)
    distances = []
    for i in range(12):
        suggestion = go_on(optimizer)
        distances.append(float(np.linalg.norm(SPACE.encode(suggestion.params)[1:])))
        optimizer.observe_failure(suggestion, reason="diverged", cost=[None, 3.0][i % 2])
    assert np.mean(distances[8:]) < np.mean(distances[:4])


def test_the_spread_of_repeats_is_noise() -> None:
    rng = np.random.default_rng(0)
    noisy = [((0.0,) * 4, 2 + 0.1 * rng.normal(), rng.uniform(1, 2)) for _ in range(8)]
    low, high = go_on(told(noisy)).predicted_output_interval  # type: ignore[misc]
    assert high - low > 0.1


def law(Z: Any) -> Any:
    """Losses at basic points: a power law in size, valleys in the rate and the mix."""
    return 1 + 2 * 10 ** (-0.2 * Z[:, 0]) + 0.1 * (Z[:, 1] - 0.5) ** 2 + 0.05 * Z[:, 2] ** 2


@pytest.mark.parametrize("seed", range(3))
def test_a_limit_that_the_cost_model_is_sure_of_is_kept_and_reached(seed: int) -> None:
    optimizer = CARBS(PARAMS[:2], max_cost=30.0, seed=seed)
    for _ in range(25):
        suggestion = optimizer.suggest()
        knows = len(optimizer.observations) >= N_CERTAIN
        assert_sound(suggestion, optimizer, 30.0 if knows else None)
        z = optimizer.space.encode(suggestion.params)
        output = 1 + 2 * 10 ** (-0.3 * z[0]) + 0.1 * z[1] ** 2
        optimizer.observe(suggestion, output=float(output), cost=float(10 ** (0.5 * z[0])))
    assert max(observation.cost for observation in optimizer.observations) > 15


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.sampled_from([0.003, 0.03]), st.integers(0, 17))
def test_repeats_make_predictions_surer(seed: int, noise: float, where: int) -> None:
    rng = np.random.default_rng(seed)
    Z = SPACE.snap(rng.normal(size=(18, 4)))
    Z = np.concatenate([Z, np.repeat(Z[[where]], 9, axis=0)])
    outputs = law(Z) + noise * rng.normal(size=len(Z))
    data = [
        Observation(params=SPACE.decode(z), output=float(output), cost=1.0)
        for z, output in zip(Z, outputs, strict=True)
    ]

    def width(n: int) -> float:
        quantiles = fit_surrogate(SPACE, data[:n]).output_quantiles
        return float(np.ptp(quantiles(Z[[where]], [0.05, 0.95], with_noise=False)))

    # Ten measurements of one point, not one; alone they would divide the width by three.
    assert width(27) < 0.7 * width(18)


def test_the_order_of_records_hardly_changes_what_is_predicted() -> None:
    rng = np.random.default_rng(1)
    Z = SPACE.snap(rng.normal(size=(40, 4)))
    data = [
        Observation(params=SPACE.decode(z), output=float(output), cost=float(10 ** z[0]))
        for z, output in zip(Z, law(Z) + 0.01 * rng.normal(size=len(Z)), strict=True)
    ]
    predictions = []
    for order in (np.arange(40), np.arange(40)[::-1], rng.permutation(40), np.argsort(Z[:, 0])):
        fitted = fit_surrogate(SPACE, [data[i] for i in order])
        predictions.append(fitted.output_quantiles(Z, [0.05, 0.5, 0.95]))
    low, middle, high = np.moveaxis(predictions, 2, 0)
    assert np.all(low.max(axis=0) < high.min(axis=0))
    assert np.ptp(middle, axis=0).max() < np.median(high - low)


def test_thinking_does_not_grow_with_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two thousand runs, of which a third failed: no covariance is larger than of 1024 points."""
    sizes, fits = [], []
    factorize, fit = gaussian_process._cholesky, scipy.optimize.minimize

    def cholesky(K: Any, *args: Any) -> Any:
        sizes.append(len(K))
        return factorize(K, *args)

    def minimized(objective: Any, *args: Any, **options: Any) -> Any:
        fits.append(len(objective.data.Z))
        return fit(objective, *args, **options)

    monkeypatch.setattr(gaussian_process, "_cholesky", cholesky)
    monkeypatch.setattr(scipy.optimize, "minimize", minimized)
    rng = np.random.default_rng(3)
    outputs = [None if i % 3 == 0 else float(rng.normal()) for i in range(2000)]
    optimizer = told(runs(outputs, 10 ** rng.normal(size=2000)))
    go_on(optimizer)
    assert max(sizes) <= 1024
    assert max(fits) <= 1024
    fits.clear()
    for i in range(4):
        if i % 2:
            optimizer.observe_failure(go_on(optimizer), reason="diverged")
        else:
            optimizer.observe(go_on(optimizer), output=1.0, cost=1.0)
    assert not fits


def test_what_was_forgotten_leaves_no_trace_and_what_failed_only_its_failure() -> None:
    history = [*runs(MANY[:20], 10 ** MANY[20:40]), *runs([None] * 3, 1.0)]
    optimizer, other = told(history), told(history)

    def next_if_never_asked(failures: Sequence[Failure]) -> list[Suggestion]:
        id = str(optimizer._state.n_suggested)
        return propose(SPACE, other.observations, failures, [], [id])

    for suggestion in optimizer.suggest(3):
        optimizer.forget(suggestion)
    assert optimizer.pending == ()
    assert (optimizer.observations, optimizer.failures) == (other.observations, other.failures)
    assert next_if_never_asked(other.failures) == [optimizer.suggest()]
    failed = optimizer.pending[0]
    optimizer.observe_failure(failed, reason="diverged", cost=2.0)
    assert optimizer.pending == ()
    assert optimizer.observations == other.observations
    failure = Failure(params=failed.params, reason="diverged", cost=2.0, id=failed.id)
    assert optimizer.failures == (*other.failures, failure)
    assert next_if_never_asked(optimizer.failures) == [optimizer.suggest()]


@pytest.mark.parametrize("nonsense", ["value", "point", "nothing"])
def test_a_model_that_cannot_be_fitted_says_so_and_the_search_goes_on(
    nonsense: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def minimized(objective: Any, start: Any, **options: Any) -> OptimizeResult:
        return OptimizeResult(
            fun=math.nan if nonsense == "value" else 1.0,
            x=np.full_like(start, math.nan) if nonsense == "point" else start,
        )

    monkeypatch.setattr(scipy.optimize, "minimize", minimized)
    for kernel in (surrogate._output_kernel, surrogate._cost_kernel, surrogate._success_kernel):
        kernel.cache_clear()
    optimizer = told([*runs(MANY[:20], 10 ** MANY[20:40]), *runs([None] * 3, 1.0)])
    go_on(optimizer)
    data = Data.pooled(np.eye(3), np.ones((3, 1)))
    assert gaussian_process.fit_kernel(data, fixed_noise=4.0).noise == 4.0
    said = {record.message for record in caplog.records}
    if nonsense == "nothing":
        assert not said
    else:
        assert "no fit to 20 runs: taking what the priors expect" in said
    for kernel in (surrogate._output_kernel, surrogate._cost_kernel, surrogate._success_kernel):
        kernel.cache_clear()


SUGGEST = """
import sys, numpy, torch
from carbs import CARBS
torch.manual_seed(99); numpy.random.seed(99)
for s in CARBS.load(sys.argv[1]).suggest(2): print(s.model_dump_json())
"""


def test_a_new_process_and_a_loaded_optimizer_go_on_as_the_one_that_searched(
    tmp_path: Path,
) -> None:
    """With failures, pending ones, and fits that began, step by step, from earlier ones."""
    rng = np.random.default_rng(4)

    def train(optimizer: CARBS, suggestion: Suggestion) -> None:
        z = SPACE.encode(suggestion.params)
        if z[1] > 1:
            optimizer.observe_failure(suggestion, reason="diverged")
        else:
            noise = np.random.default_rng(int(suggestion.id)).normal()
            output = float(law(z[None, :])[0] + 0.01 * noise)
            optimizer.observe(suggestion, output=output, cost=float(10 ** (0.4 * z[0])))

    optimizer = CARBS(PARAMS, seed=1, max_cost=100.0)
    while len(optimizer.observations) < 36:
        optimizer.suggest(3 - len(optimizer.pending))
        train(optimizer, optimizer.pending[rng.integers(3)])
    assert optimizer.failures and optimizer.pending
    path = tmp_path / "optimizer.json"
    optimizer.save(path)
    done = subprocess.run(
        [sys.executable, "-c", SUGGEST, str(path)], check=True, capture_output=True, text=True
    )
    loaded = CARBS.load(path)
    here = optimizer.suggest(2)
    assert [Suggestion.model_validate_json(line) for line in done.stdout.splitlines()] == here
    assert loaded.suggest(2) == here
    for suggestion in here:
        for one in (optimizer, loaded):
            train(one, suggestion)
        assert loaded.suggest() == optimizer.suggest()
