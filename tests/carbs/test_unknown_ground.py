"""Spaces that nobody has tuned: scales that are wrong or missing, and few configurations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from carbs import CARBS, ChoiceSpace, LinearSpace, LogSpace, Param
from carbs.acquisition import _log_improvement

Function = Callable[[dict[str, Any]], tuple[float, float]]


def run(optimizer: CARBS, function: Function, n_trials: int) -> list[dict[str, Any]]:
    tried = []
    for _ in range(n_trials):
        suggestion = optimizer.suggest()
        loss, cost = function(suggestion.params)
        optimizer.observe(suggestion, output=loss, cost=cost)
        tried.append(suggestion.params)
    return tried


@pytest.mark.parametrize("seed", range(3))
def test_a_linear_space_without_a_scale_crosses_its_range(seed: int) -> None:
    """The optimum lies at the far end, thirty times the centre."""

    def function(params: dict[str, Any]) -> tuple[float, float]:
        return 2.0 + 3.0 * (1 - params["batch"] / 1024) ** 2, 10.0

    space = LinearSpace(min=8, max=1024, is_integer=True)
    tried = run(CARBS([Param("batch", space, 32)], seed=seed), function, 25)
    assert max(params["batch"] for params in tried) > 900


def test_the_scale_of_a_bounded_linear_space_comes_from_its_bounds() -> None:
    assert LinearSpace(min=0, max=100).scale == 25
    assert LinearSpace(min=0, max=100, scale=1).scale == 1
    assert LinearSpace(min=0).scale == 1
    space = LinearSpace(min=0, max=100)
    assert LinearSpace.model_validate_json(space.model_dump_json()) == space


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_a_misstated_scale_is_outgrown(scale: float) -> None:
    """A decade is what matters, and the optimum lies four away."""

    def function(params: dict[str, Any]) -> tuple[float, float]:
        distance = math.log10(params["lr"] / 1e-2)
        return 1.0 + params["n"] ** -0.4 + 0.2 * distance**2 / (1 + 0.1 * distance**2), params["n"]

    closest = []
    for seed in range(3):
        optimizer = CARBS(
            [
                Param("n", LogSpace(scale=0.5, min=1, max=1e4), 10.0),
                Param("lr", LogSpace(scale=scale), 1e-6),
            ],
            max_cost=1000,
            seed=seed,
        )
        tried = run(optimizer, function, 30)
        closest.append(min(abs(math.log10(params["lr"] / 1e-2)) for params in tried))
    assert np.median(closest) < 0.3


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_small_space_is_tried_whole_before_anything_is_repeated(noise: float) -> None:
    rng = np.random.default_rng(0)

    def function(params: dict[str, Any]) -> tuple[float, float]:
        loss = abs(params["a"] - 4) + 0.5 * abs(params["b"] - 3) + (params["c"] != "y")
        return 1.0 + 0.1 * loss + noise * rng.standard_normal(), 1.0 + params["a"]

    optimizer = CARBS(
        [
            Param("a", LinearSpace(min=1, max=6, is_integer=True), 1),
            Param("b", LinearSpace(min=1, max=6, is_integer=True), 1),
            Param("c", ChoiceSpace(["x", "y", "z"]), "x"),
        ]
    )
    every = set(itertools.product(range(1, 7), range(1, 7), "xyz"))
    tried = [tuple(params.values()) for params in run(optimizer, function, len(every) + 5)]
    # The first few are drawn around the centre.
    assert len(set(tried[: len(every)])) >= 0.9 * len(every)
    assert set(tried) == every


def test_once_everything_was_tried_it_says_so_and_repeats_the_front(
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimizer = CARBS(
        [
            Param("a", LinearSpace(min=1, max=3, is_integer=True), 1),
            Param("c", ChoiceSpace(["x", "y"]), "x"),
        ]
    )
    for trial in range(10):
        suggestion = optimizer.suggest()
        a, c = suggestion.params["a"], suggestion.params["c"]
        if trial >= 6:
            assert c == "x"
            assert "all configurations have been tried" in caplog.text
        else:
            assert not caplog.text
        optimizer.observe(suggestion, output=1 / a + (c == "y"), cost=float(a))  # type: ignore


def test_a_search_that_goes_in_circles_looks_elsewhere() -> None:
    """The best rate is its bound for the smallest run, and 2.5 times that for the largest.

    The first good runs lie at the bound, where one more always comes out as predicted.
    """
    params = [
        Param("size", LogSpace(min=1, max=1000), 1.0),
        Param("rate", LogSpace(min=1e-4, max=1e-1), 1e-3),
    ]

    def away(params: dict[str, Any]) -> float:
        return math.log10(params["rate"] / (1e-4 * params["size"] ** math.log(2.5, 1000)))

    def train(params: dict[str, Any]) -> tuple[float, float]:
        size, u = params["size"], away(params)
        return 1 + size**-0.3 * (1 + 2 * u**2 / (1 + u**2 / 4)), size

    nearest = []
    for seed in range(6):
        tried = run(CARBS(params, max_cost=1000.0, seed=seed), train, 60)
        nearest.append(min(abs(away(p)) for p in tried if p["size"] > 1000 / 3))
    assert sum(distance < 0.1 for distance in nearest) >= 4, nearest


def test_what_failed_is_not_tried_again() -> None:
    optimizer = CARBS([Param("a", ChoiceSpace(list(range(12))), 0)])
    tried = []
    for _ in range(12):
        suggestion = optimizer.suggest()
        tried.append(suggestion.params["a"])
        if suggestion.params["a"] % 2:
            optimizer.observe_failure(suggestion, reason="out of memory")
        else:
            optimizer.observe(suggestion, output=1.0 / (1 + suggestion.params["a"]), cost=1.0)
    assert len(set(tried)) >= 11


def test_the_expected_improvement_is_that_of_a_normal_variable() -> None:
    u = np.array([-1e6, -300.0, -40.0, -8.0, -1.0, -0.999, 0.0, 1.0, 30.0])
    logs = _log_improvement(u)
    assert np.isfinite(logs).all()
    assert (np.diff(logs) > 0).all()
    # By quadrature, where it can be had.
    t = np.linspace(-12, 45, 2_000_001)
    for value in (-8.0, -1.0, 0.0, 1.0, 30.0):
        density = np.exp(-0.5 * np.square(t - value)) / math.sqrt(2 * math.pi)
        direct = np.trapezoid(np.maximum(t, 0) * density, t)
        assert _log_improvement(np.array([value]))[0] == pytest.approx(math.log(direct), abs=1e-5)
    # And far below by its series.
    assert logs[1] == pytest.approx(
        -0.5 * 300**2 - 0.5 * math.log(2 * math.pi) - 2 * math.log(300), abs=1e-3
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_front_is_followed_below_the_centre_too(seed: int) -> None:
    """A centre is a guess: what is best at a third of its cost is part of the front."""

    def function(params: dict[str, Any]) -> tuple[float, float]:
        off = math.log10(params["lr"] / (1e-2 * params["n"] ** -0.2))
        return 1.0 + params["n"] ** -0.4 + 0.3 * off**2, 100 * params["n"]

    optimizer = CARBS(
        [Param("n", LogSpace(scale=0.5), 1.0), Param("lr", LogSpace(scale=0.5), 1e-3)],
        max_cost=10_000,
        seed=seed,
    )
    run(optimizer, function, 40)
    cheap = [o for o in optimizer.observations if 30 < o.cost < 70]
    assert min(o.output / (1 + (o.cost / 100) ** -0.4) for o in cheap) < 1.02


def of_width(params: dict[str, Any]) -> tuple[float, float]:
    """Loss and cost: the best learning rate is 10^-2.5, whatever the width."""
    width, rate = params["width"], math.log10(params["lr"])
    return 1 + width**-0.5 + 0.1 * (rate + 2.5) ** 2, (width / 64) ** 2


def width_and_rate(width: int) -> list[Param]:
    return [
        Param("width", LogSpace(is_integer=True), width),
        # Whose best value does not move with the width.
        Param("lr", LogSpace(scale=0.5), 1e-3, role="none"),
    ]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("center", [640, 5000])
def test_a_centre_dearer_than_the_cap_is_left(center: int, seed: int) -> None:
    """By a factor of 100, and of 6,000: what is under the cap has a worse loss than the centre."""
    optimizer = CARBS(width_and_rate(center), max_cost=1.0, seed=seed)
    run(optimizer, of_width, 30)
    under = [o for o in optimizer.observations if o.cost <= 1.0]
    assert len(under) >= 20
    best, _ = of_width({"width": 64, "lr": 10**-2.5})
    assert min(o.output for o in under) < best * 1.01
    assert all(1e-7 < o.params["lr"] < 1e2 for o in optimizer.observations)


@pytest.mark.parametrize("scale", [0.03, 0.1, 0.15])
def test_a_whole_number_with_a_small_scale_moves(scale: float) -> None:
    """From 1, a scale of 0.17 decades or less reaches no 2."""
    depth = Param("depth", LogSpace(min=1, max=64, is_integer=True, scale=scale), 1)
    optimizer = CARBS([depth, Param("lr", LogSpace(), 1e-3)], max_cost=100.0, seed=0)
    run(
        optimizer,
        lambda p: (1 + 1 / p["depth"] + 0.1 * math.log10(p["lr"] * 100) ** 2, p["depth"]),
        25,
    )
    assert max(o.params["depth"] for o in optimizer.observations) >= 32


@pytest.mark.parametrize("max_cost", [100.0, 4000.0])
@pytest.mark.parametrize("seed", range(3))
def test_a_limit_once_known_is_not_run_into_again_and_again(max_cost: float, seed: int) -> None:
    """Above a width of 200 memory runs out; below it, nothing is to be gained in the end."""
    optimizer = CARBS(width_and_rate(64), max_cost=max_cost, seed=seed)
    for _ in range(100):
        suggestion = optimizer.suggest()
        if suggestion.params["width"] > 200:
            optimizer.observe_failure(suggestion, reason="out of memory")
        else:
            loss, cost = of_width(suggestion.params)
            optimizer.observe(suggestion, output=loss, cost=cost)
    assert len(optimizer.failures) <= 20
    best, _ = of_width({"width": 200, "lr": 10**-2.5})
    assert min(o.output for o in optimizer.observations) < best * 1.001


@pytest.mark.parametrize("seed", range(3))
def test_a_centre_that_fails_is_left(seed: int) -> None:
    """Only one choice of three can be trained, and rates a decade and more above the centre's."""
    params = [
        Param("kind", ChoiceSpace(["a", "b", "c"]), "a"),
        Param("lr", LogSpace(scale=0.5), 1e-3),
    ]
    optimizer = CARBS(params, seed=seed)
    for _ in range(40):
        suggestion = optimizer.suggest()
        if suggestion.params["kind"] == "b" and suggestion.params["lr"] > 4e-3:
            optimizer.observe(suggestion, output=suggestion.params["lr"], cost=1.0)
        else:
            optimizer.observe_failure(suggestion, reason="cannot be trained")
    assert len(optimizer.observations) >= 3
