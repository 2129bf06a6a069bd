"""How wide the interval beyond a sweep is: by where its best run lies, and by its own record."""

from __future__ import annotations

import math

import numpy as np
import pytest

from carbs import LogSpace, Observation, Param, SearchSpace
from carbs.analysis.front.expectation import Expectation, _widening
from carbs.analysis.front.model import fit_front

SPACE = SearchSpace(
    [
        Param("size", LogSpace(scale=0.5), 1.0),
        Param("tokens", LogSpace(scale=0.5), 1.0),
        Param("rate", LogSpace(scale=0.5), 1.0),
    ]
)


def run(size: float, tokens: float, rate: float, off: float = 0.0) -> Observation:
    loss = 1.0 + size**-0.3 + tokens**-0.3 + 0.15 * math.log10(rate) ** 2 + off
    return Observation(
        params={"size": size, "tokens": tokens, "rate": rate}, output=loss, cost=size * tokens
    )


def sweep(seed: int) -> list[Observation]:
    """100 runs near the front, none dearer than 100."""
    rng = np.random.default_rng(seed)
    runs = []
    for cost in 10 ** rng.uniform(-0.5, 2.0, 100):
        size = math.sqrt(cost) * 10 ** (0.25 * rng.standard_normal())
        off = 0.005 * rng.standard_normal()
        runs.append(run(size, cost / size, 10 ** (0.4 * rng.standard_normal()), off))
    return runs


def width(runs: list[Observation]) -> float:
    """Of the interval of the optimum at a cost of 10,000."""
    front = fit_front(SPACE, runs)
    z = SPACE.encode({"size": 100.0, "tokens": 100.0, "rate": 1.0})
    low, high = Expectation.of(front).front.surface.quantiles(z[None, :], (0.05, 0.95))[0]
    return float(high - low)


@pytest.mark.parametrize("seed", range(2))
def test_a_dear_run_that_went_wrong_brings_what_lies_beyond_no_nearer(seed: int) -> None:
    runs = sweep(seed)
    wrong = run(30.0, 30.0, 1e-3)
    assert wrong.output > max(r.output for r in runs if r.cost > 12)
    assert width([*runs, wrong]) > 0.95 * width(runs)


@pytest.mark.parametrize("seed", range(2))
def test_a_sweep_that_foretold_its_dear_runs_well_is_trusted_further(seed: int) -> None:
    assert Expectation.of(fit_front(SPACE, sweep(seed))).widening < 0.9


def test_the_worst_split_decides_whether_an_interval_is_narrower() -> None:
    assert _widening([]) == 1
    assert _widening([0.1, 0.1]) < _widening([0.1, 0.3]) < 1
    assert _widening([0.1, 0.6]) == 1
    assert _widening([0.5, 3.0]) == 1
    assert _widening([1.5, 3.0]) == _widening([1.5, 1.5]) > 1
    assert _widening([3.0]) > 1
    assert _widening([0.5, 0.5]) == pytest.approx(1)
