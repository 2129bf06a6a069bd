"""The edge beyond which runs fail, found in a sweep and followed beyond it."""

from __future__ import annotations

import numpy as np
import pytest

from carbs import Failure, LogSpace, Observation, Param, SearchSpace
from carbs.analysis.front.success import SuccessLaw
from carbs.spaces import FloatArray

SPACE = SearchSpace([Param("size", LogSpace(scale=0.5), 1.0), Param("rate", LogSpace(), 1.0)])
EDGE = -0.5  # exponent in size of the highest rate that can be trained


def runs(seed: int, n: int = 100) -> tuple[list[Observation], list[Failure]]:
    rng = np.random.default_rng(seed)
    observations, failures = [], []
    for _ in range(n):
        size = 10 ** rng.uniform(0.0, 1.5)
        rate = 2 * size**EDGE * 10 ** (rng.normal() - 0.7)
        params = {"size": size, "rate": rate}
        if rate > 2 * size**EDGE:
            failures.append(Failure(params=params, reason="diverged", cost=0.3 * size))
        else:
            observations.append(Observation(params=params, output=1.0, cost=size))
    return observations, failures


def at(size: float, rates: list[float]) -> FloatArray:
    return SPACE.encode_all([{"size": size, "rate": rate} for rate in rates])


@pytest.mark.parametrize("seed", range(5))
def test_an_edge_is_followed_beyond_the_sweep(seed: int) -> None:
    """A decade and a half beyond, three times below the edge is safe and three times above not."""
    law, size = SuccessLaw.fit(SPACE, *runs(seed)), 1000.0
    edge = 2 * size**EDGE
    safe, unsafe = law.likeliest(at(size, [edge / 3, 3 * edge]))
    assert unsafe < 0.5 < 0.8 < safe
    # Where the edge is there is not certain.
    assert unsafe < law.probability(at(size, [edge / 3]))[0] < safe


def test_probabilities_are_frequencies() -> None:
    """Of runs drawn from an edge of log odds, as many succeed as were said to."""
    rng, said, came = np.random.default_rng(0), [], []
    for _ in range(300):
        w, level = rng.normal(size=2), rng.normal(3.0, 1.0)
        Z = rng.normal(size=(60, 2))
        good = rng.random(60) < 1 / (1 + np.exp(-(level + Z @ w)))
        params = [SPACE.decode(z) for z in Z]
        observations = [
            Observation(params=p, output=1.0, cost=1.0)
            for p, is_good in zip(params, good, strict=True)
            if is_good
        ]
        failures = [
            Failure(params=p, reason="diverged")
            for p, is_good in zip(params, good, strict=True)
            if not is_good
        ]
        far = 3.0 * rng.normal(size=(20, 2))
        said.append(SuccessLaw.fit(SPACE, observations, failures).probability(far))
        came.append(1 / (1 + np.exp(-(level + far @ w))))
    chances, truth = np.concatenate(said), np.concatenate(came)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        here = (chances >= low) & (chances < low + 0.2)
        assert truth[here].mean() == pytest.approx(chances[here].mean(), abs=0.1)


@pytest.mark.parametrize("seed", range(3))
def test_a_sharp_edge_is_seen_among_many_parameters(seed: int) -> None:
    """A memory's limit, and a dozen runs that were too large for it."""
    rng, names = np.random.default_rng(seed), [f"x{i}" for i in range(11)]
    space = SearchSpace([Param(name, LogSpace(), 1.0) for name in ("size", *names)])
    Z = rng.normal(size=(100, 12))
    Z[:, 0] = np.concatenate([rng.uniform(-1, 1, 88), 1 + rng.uniform(0.02, 0.4, 12)])
    params = [space.decode(z) for z in Z]
    observations = [Observation(params=p, output=1.0, cost=10.0) for p in params[:88]]
    failures = [Failure(params=p, reason="out of memory", cost=1.0) for p in params[88:]]
    larger, other = np.zeros((20, 12)), rng.normal(size=(20, 12))
    larger[:, 0], other[:, 0] = np.linspace(1.5, 2.5, 20), rng.uniform(-1, 0.7, 20)
    law = SuccessLaw.fit(space, observations, failures)
    assert (law.likeliest(larger) < 0.1).all()
    assert (law.likeliest(other) > 0.8).all()


def test_what_was_ended_for_its_cost_says_nothing() -> None:
    observations, _ = runs(0)
    dearest = max(run.cost for run in observations)
    ended = Failure(params={"size": 30.0, "rate": 0.1}, reason="too dear", cost=dearest)
    law = SuccessLaw.fit(SPACE, observations, [ended])
    assert law.probability(at(1e3, [0.1, 1e3])).tolist() == [1.0, 1.0]
    failed = ended.model_copy(update={"cost": dearest / 2})
    law = SuccessLaw.fit(SPACE, observations, [failed])
    assert (law.probability(at(1e3, [0.1, 1e3])) < 1.0).all()
