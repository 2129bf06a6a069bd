"""Warm start from outside: what an earlier sweep is worth, and what of it fits a new space."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from carbs import (
    CARBS,
    ChoiceSpace,
    EarlierSweep,
    Failure,
    LogSpace,
    MixtureSpace,
    Observation,
    Param,
    SearchSpace,
)
from carbs.surrogate import fit_surrogate

SIZE = Param("size", LogSpace(scale=0.5, min=1), 20.0)
RATE = Param("rate", LogSpace(scale=0.5, min=1e-4, max=1), 1e-2)
PARAMS = [SIZE, RATE]
Train = Callable[[Any], tuple[float, float]]


def train(params: Any) -> tuple[float, float]:
    """A power law in size and a valley in the learning rate, far from the centre's."""
    rate = math.log10(params["rate"]) + 3.2
    return 1 + 2 * params["size"] ** -0.4 + 0.3 * rate**2, 0.05 * params["size"]


def related(params: Any) -> tuple[float, float]:
    """Other units, other hardware, and the valley at twice the rate."""
    output, cost = train({**params, "rate": params["rate"] / 2})
    return 130 * output + 30, cost / 3600


def reversed_(params: Any) -> tuple[float, float]:
    output, cost = train(params)
    return 5 - output, cost


def run(optimizer: CARBS, n: int, train: Train = train) -> CARBS:
    for _ in range(n):
        suggestion = optimizer.suggest()
        output, cost = train(suggestion.params)
        optimizer.observe(suggestion, output=output, cost=cost)
    return optimizer


def least(n: int, earlier: list[EarlierSweep]) -> float:
    """The least output of a short search, on average over three."""
    searches = [run(CARBS(PARAMS, max_cost=10, earlier=earlier, seed=seed), n) for seed in range(3)]
    return float(np.mean([min(run.output for run in s.observations) for s in searches]))


@pytest.fixture(scope="module")
def of_related() -> EarlierSweep:
    return EarlierSweep.of(run(CARBS(PARAMS, max_cost=10 / 3600, seed=7), 25, related))


@pytest.fixture(scope="module")
def of_reversed() -> EarlierSweep:
    return EarlierSweep.of(run(CARBS(PARAMS, max_cost=10, seed=7), 25, reversed_))


def test_a_related_sweep_helps(of_related: EarlierSweep) -> None:
    best = train({"size": 200, "rate": 10**-3.2})[0]
    assert least(4, [of_related]) - best < 0.6 * (least(4, []) - best)


def test_a_reversed_sweep_does_little_harm(of_reversed: EarlierSweep) -> None:
    best, center = train({"size": 200, "rate": 10**-3.2})[0], train({"size": 20, "rate": 1e-2})[0]
    assert least(12, [of_reversed]) - best < least(12, []) - best + 0.05 * (center - best)


def test_two_sweeps_are_trusted_each_as_it_agrees(
    of_related: EarlierSweep, of_reversed: EarlierSweep
) -> None:
    best = train({"size": 200, "rate": 10**-3.2})[0]
    assert least(8, [of_reversed, of_related]) - best < 0.7 * (least(8, []) - best)


def test_the_first_run_is_the_centre_and_no_random_steps_follow(of_related: EarlierSweep) -> None:
    optimizer = CARBS(PARAMS, max_cost=10, earlier=[of_related])
    first = optimizer.suggest()
    assert first.params == {"size": 20, "rate": 1e-2}
    output, cost = train(first.params)
    optimizer.observe(first, output=output, cost=cost)
    second = optimizer.suggest()
    # In the new sweep's units already, though one run is all that was seen of it.
    output, cost = train(second.params)
    assert second.predicted_cost == pytest.approx(cost, rel=0.2)
    assert output < optimizer.observations[0].output


def test_earlier_runs_are_no_results(of_related: EarlierSweep) -> None:
    optimizer = run(CARBS(PARAMS, earlier=[of_related]), 2)
    assert len(optimizer.observations) == 2
    assert all(run in optimizer.observations for run in optimizer.pareto_front())


def test_same_seed_same_suggestions_also_when_saved(
    of_related: EarlierSweep, tmp_path: Path
) -> None:
    twins = [run(CARBS(PARAMS, earlier=[of_related], seed=3), 2) for _ in range(2)]
    twins[0].save(tmp_path / "optimizer.json")
    following = twins[0].suggest(2)
    assert following == twins[1].suggest(2)
    assert following == CARBS.load(tmp_path / "optimizer.json").suggest(2)
    cold = run(CARBS(PARAMS, seed=3), 2)
    assert following != cold.suggest(2)


def test_a_saved_optimizer_is_an_earlier_sweep(tmp_path: Path) -> None:
    optimizer = run(CARBS(PARAMS, direction="maximize"), 2)
    optimizer.observe_failure(optimizer.suggest(), reason="diverged")
    optimizer.save(tmp_path / "old.json")
    loaded = EarlierSweep.load(tmp_path / "old.json", defaults={"rate": 0.1})
    assert loaded == EarlierSweep.of(optimizer, defaults={"rate": 0.1})
    assert loaded.observations == optimizer.observations
    assert loaded.failures == optimizer.failures
    assert loaded.direction == "maximize"
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json is no saved optimizer"):
        EarlierSweep.load(tmp_path / "other.json")


def of_runs(*configurations: Any, **fields: Any) -> EarlierSweep:
    runs = tuple(Observation(params=params, output=2.0, cost=3.0) for params in configurations)
    return EarlierSweep(observations=runs, **fields)


def seen(params: list[Param], sweep: EarlierSweep) -> list[float]:
    """The only run's basic coordinates."""
    runs = sweep.seen_from(SearchSpace(params), "minimize")
    assert not runs.left_out
    assert len(runs.Z) == 1
    return runs.Z[0].tolist()


def test_an_added_parameter_has_the_centre_or_what_the_user_says() -> None:
    old = {"size": 20.0}
    assert seen(PARAMS, of_runs(old)) == pytest.approx([0, 0])
    assert seen(PARAMS, of_runs(old, defaults={"rate": 0.1})) == pytest.approx([0, 2])


def test_a_removed_parameter_is_dropped() -> None:
    assert seen([RATE], of_runs({"size": 7.0, "rate": 1.0})) == pytest.approx([4])


def test_a_value_beyond_the_new_range_is_data() -> None:
    assert seen(PARAMS, of_runs({"size": 0.2, "rate": 100.0})) == pytest.approx([-4, 8])


def test_another_component_of_a_mixture() -> None:
    mix = Param("mix", MixtureSpace(["code", "prose"]), {"code": 1.0, "prose": 0.0})
    assert seen([mix], of_runs({"mix": {"code": 1.0}})) == pytest.approx([0, 0])
    assert seen([mix], of_runs({"mix": {"code": 1.0, "tables": 0.0}})) == pytest.approx([0, 0])
    lost = of_runs({"mix": {"code": 0.5, "tables": 0.5}})
    assert list(lost.seen_from(SearchSpace([mix]), "minimize").left_out.values()) == [1]


OPTIMIZER = Param("optimizer", ChoiceSpace(["adamw", "sgd"]), "adamw")


def test_a_parameter_that_became_conditional_or_inactive() -> None:
    rate = Param("rate", RATE.space, 1e-2, when={"optimizer": "sgd"})
    space = [OPTIMIZER, rate]
    assert seen(space, of_runs({"rate": 0.1})) == pytest.approx([1, 0, 0])
    sgd = of_runs({"rate": 0.1}, defaults={"optimizer": "sgd"})
    assert seen(space, sgd) == pytest.approx([0, 1, 2])


def test_unknown_choices_are_left_out_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    old = of_runs(*({"optimizer": name} for name in ("lion", "sgd", "lion")))
    failure = Failure(params={"optimizer": "lion"}, reason="diverged")
    old = old.model_copy(update={"failures": (failure,)})
    with caplog.at_level(logging.WARNING):
        CARBS([OPTIMIZER], earlier=[of_runs({"optimizer": "sgd"}), old])
    assert len(old.seen_from(SearchSpace([OPTIMIZER]), "minimize").Z) == 1
    (record,) = caplog.records
    assert "earlier sweep 1: 3 runs left out: parameter 'optimizer': 'lion'" in record.getMessage()


def test_values_that_a_scale_cannot_express_are_left_out() -> None:
    runs = of_runs({"size": -1.0}, {"size": "big"}).seen_from(SearchSpace([SIZE]), "minimize")
    assert (len(runs.Z), sum(runs.left_out.values())) == (0, 2)
    # With nothing left, the search is a cold one.
    optimizer = CARBS([SIZE], earlier=[of_runs({"size": -1.0})])
    assert optimizer.suggest(2) == CARBS([SIZE]).suggest(2)


def test_earlier_failures_are_avoided() -> None:
    """All above a rate of 0.02 diverged in a sweep that says nothing else of the rate."""
    rates = np.geomspace(1e-4, 1, 20)
    runs = of_runs(*({"size": 20.0, "rate": rate} for rate in rates if rate < 0.02))
    diverged = [{"size": 20.0, "rate": rate} for rate in rates if rate > 0.02]
    failures = tuple(Failure(params=params, reason="diverged") for params in diverged)
    optimizer = run(CARBS(PARAMS, earlier=[runs.model_copy(update={"failures": failures})]), 1)
    chances = [s.success_probability for s in optimizer.suggest(4)]
    assert min(chances) > 0.6  # type: ignore[type-var, operator]


def test_a_forecast_in_an_earlier_sweep_pulls_less_than_a_measurement() -> None:
    """One run in the middle is far off the law of the others; the sweep had other units."""
    sizes = np.geomspace(2, 200, 9)
    laws = [1 + 2 * size**-0.4 for size in sizes]
    space = SearchSpace([SIZE])

    def error(deviation: float) -> float:
        runs = [
            Observation(
                params={"size": size},
                output=100 * (law + 0.4 * is_off),
                output_deviation=100 * deviation * is_off,
                cost=size,
            )
            for size, law, is_off in zip(sizes, laws, np.arange(9) == 4, strict=True)
        ]
        new = [
            Observation(params={"size": sizes[i]}, output=laws[i], cost=sizes[i])
            for i in (0, 2, 6, 8)
        ]
        earlier = EarlierSweep(observations=tuple(runs)).seen_from(space, "minimize")
        surrogate = fit_surrogate(space, new, earlier=[earlier])
        middle = surrogate.output_quantiles(space.encode_all([{"size": sizes[4]}]), [0.5])
        return abs(float(middle[0, 0]) - laws[4])

    assert error(0.4) < 0.2 * error(0.0)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"to maximize its output, but this search is to minimize"):
        CARBS(PARAMS, earlier=[EarlierSweep(direction="maximize")])
    with pytest.raises(ValueError, match=r"defaults name \['width'\], no parameter"):
        CARBS(PARAMS, earlier=[EarlierSweep(defaults={"width": 3})])
    with pytest.raises(ValueError, match=r"defaults: parameter 'rate': -1 is not positive|outside"):
        CARBS(PARAMS, earlier=[EarlierSweep(defaults={"rate": -1})])


def test_thousands_of_earlier_runs_count_as_a_few() -> None:
    """The processes see the most telling ones, so thinking does not grow."""
    rng = np.random.default_rng(0)
    configurations = [
        {"size": float(size), "rate": float(rate)}
        for size, rate in 10 ** rng.uniform([0.5, -4], [2.3, 0], size=(1500, 2))
    ]
    runs = tuple(
        Observation(params=params, output=train(params)[0], cost=train(params)[1])
        for params in configurations
    )
    best = train({"size": 200, "rate": 10**-3.2})[0]
    assert least(3, [EarlierSweep(observations=runs)]) - best < 0.6 * (least(3, []) - best)
