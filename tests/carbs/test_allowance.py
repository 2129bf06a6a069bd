"""What all runs together may take: told to the search, it is used up and not exceeded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from carbs import CARBS, LinearSpace, LogSpace, Param, Suggestion
from carbs.allowance import Allowance
from carbs.spaces import Params
from carbs.study import CarbsSampler

PARAMS = [
    Param("size", LogSpace(min=1, max=1000), 1.0),
    Param("rate", LogSpace(min=1e-4, max=1e-1), 1e-3),
]
MAX_COST = 100.0


def train(size: float, rate: float) -> tuple[float, float]:
    loss = 1 + size**-0.3 + 0.1 * math.log10(rate / (4e-3 * size**-0.2)) ** 2
    return loss, 0.5 + 0.5 * size


def spend(
    n_trials: int | None, budget: float | None, seed: int = 0, n_runs: int = 30
) -> list[float]:
    """Costs of a search that ends where its limits say, or after so many runs."""
    optimizer = CARBS(PARAMS, max_cost=MAX_COST, n_trials=n_trials, budget=budget, seed=seed)
    costs: list[float] = []
    while len(costs) < (n_trials or n_runs) and sum(costs) < (budget or math.inf):
        suggestion = optimizer.suggest()
        loss, cost = train(**suggestion.params)  # type: ignore[arg-type]
        optimizer.observe(suggestion, output=loss, cost=cost)
        costs.append(cost)
    return costs


@pytest.mark.parametrize("budget", [150.0, 450.0])
def test_of_trials_and_budget_both_are_used_up(budget: float) -> None:
    costs = [spend(30, budget, seed) for seed in range(6)]
    shares = np.array([sum(of_one) / budget for of_one in costs])
    lengths = [len(of_one) for of_one in costs]
    assert np.mean(shares) > 0.75
    assert np.mean(lengths) > 0.75 * 30
    # Beyond the budget by no more than a prediction is wrong.
    assert shares.max() < 1.1


def test_a_larger_budget_is_spent_on_dearer_runs() -> None:
    small, large = (
        np.median(np.concatenate([spend(30, b, s) for s in range(2)])) for b in (60, 900)
    )
    assert large > 2 * small


def test_nothing_is_proposed_that_the_rest_cannot_pay() -> None:
    optimizer = CARBS(PARAMS, max_cost=MAX_COST, budget=60.0)
    spent = 0.0
    for _ in range(12):
        suggestion = optimizer.suggest()
        if spent > 10 and suggestion.predicted_cost is not None:
            assert spent + suggestion.predicted_cost < 66
        loss, cost = train(**suggestion.params)  # type: ignore[arg-type]
        optimizer.observe(suggestion, output=loss, cost=cost)
        spent += cost
        if spent > 55:
            break


def test_what_is_pending_is_paid_for_too() -> None:
    optimizer = CARBS(PARAMS, max_cost=MAX_COST, budget=150.0, seed=1)
    for _ in range(8):
        suggestion = optimizer.suggest()
        loss, cost = train(**suggestion.params)  # type: ignore[arg-type]
        optimizer.observe(suggestion, output=loss, cost=cost)
    spent = sum(o.cost for o in optimizer.observations)
    batch = optimizer.suggest(20)
    assert spent + sum(s.predicted_cost or 0.0 for s in batch) < 1.2 * 150


def test_limits_are_kept_and_can_be_told_anew(tmp_path: Path) -> None:
    optimizer = CARBS(PARAMS, max_cost=MAX_COST, n_trials=20, budget=300.0)
    for _ in range(8):
        suggestion = optimizer.suggest()
        loss, cost = train(**suggestion.params)  # type: ignore[arg-type]
        optimizer.observe(suggestion, output=loss, cost=cost)
    optimizer.save(tmp_path / "search.json")
    same = CARBS.load(tmp_path / "search.json")
    left = 2.0
    spent = sum(observation.cost for observation in optimizer.observations)
    poorer = CARBS.load(tmp_path / "search.json", budget=spent + left)
    poorer.save(tmp_path / "poorer.json")
    poorer_again = CARBS.load(tmp_path / "poorer.json")
    ours, cheaper = optimizer.suggest(), poorer.suggest()
    assert same.suggest() == ours
    assert poorer_again.suggest() == cheaper
    assert cheaper.predicted_cost < 1.2 * left < ours.predicted_cost  # type: ignore[operator]


def test_optunas_sampler_takes_the_same_limits() -> None:
    sampler = CarbsSampler(PARAMS, max_cost=MAX_COST, n_trials=20, budget=300.0)
    study = optuna.create_study(directions=["minimize"] * 2, sampler=sampler)
    optimizer = CARBS(PARAMS, max_cost=MAX_COST, n_trials=20, budget=300.0)
    for _ in range(8):
        trial, suggestion = study.ask(), optimizer.suggest()
        assert trial.params == pytest.approx(suggestion.params)
        loss, cost = train(**suggestion.params)  # type: ignore[arg-type]
        study.tell(trial, [loss, cost])
        optimizer.observe(suggestion, output=loss, cost=cost)


@pytest.mark.parametrize(("name", "limit"), [("n_trials", 0), ("budget", 0.0), ("budget", -1.0)])
def test_a_limit_is_positive(name: str, limit: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {limit}, expected a positive number or None"):
        CARBS(PARAMS, **{name: limit})  # type: ignore[arg-type]


def test_cost_counts_the_less_the_more_there_is_for_each_trial() -> None:
    poor, rich = Allowance(50, 200.0), Allowance(50, 2000.0)
    exponents = [a.cost_exponent(10, 50.0, 1.0, 100.0) for a in (poor, rich)]
    assert 0 <= exponents[1] < exponents[0] <= 1
    # Without limits, with one, or without a dearest run: fully at first, and ever less.
    for allowance in (Allowance(), Allowance(n_trials=100), Allowance(budget=500.0), poor):
        course = [allowance.cost_exponent(n, 5.0 * n, None, None) for n in range(0, 100, 10)]
        assert course[0] == 1
        assert sorted(course, reverse=True) == course
        assert course[-1] < 0.4


def test_the_last_of_a_known_number_of_trials_go_to_the_cap() -> None:
    """A search that knows how many there are ends dearer than one that does not."""
    told = [spend(20, None, seed)[-4:] for seed in range(4)]
    not_told = [spend(None, None, seed, n_runs=20)[-4:] for seed in range(4)]
    assert np.mean(told) > 1.5 * np.mean(not_told)


def bets(n_trials: int, seed: int) -> tuple[CARBS, Suggestion]:
    """A search of a small language model up to its last trial, with 1% of noise; and that one."""
    rng = np.random.default_rng(seed)
    optimizer = CARBS(language_model_params(), max_cost=1e4, n_trials=n_trials, seed=seed)
    for _ in range(n_trials - 1):
        suggestion = optimizer.suggest()
        output = of_language_model(suggestion.params) * math.exp(0.01 * rng.standard_normal())
        optimizer.observe(suggestion, output=output, cost=compute(suggestion.params))
    return optimizer, optimizer.suggest()


def language_model_params() -> list[Param]:
    return [
        Param("n_params", LogSpace(), 1.0),
        Param("tokens", LogSpace(), 1.0),
        Param("lr", LogSpace(), 3.0),
    ]


def compute(params: Params) -> float:
    return float(params["n_params"] * params["tokens"])


def of_language_model(params: Params) -> float:
    bad = 0.1 * math.log10(params["lr"] * compute(params) ** 0.2) ** 2
    return float(1 + params["n_params"] ** -0.3 + params["tokens"] ** -0.3 + bad)


def test_the_last_trial_bets_at_the_cap_on_what_all_others_have_taught() -> None:
    for seed in range(3):
        optimizer, last = bets(32, seed)
        assert 0.9e4 < compute(last.params) <= 1e4
        best = min(of_language_model(run.params) for run in optimizer.observations)
        assert of_language_model(last.params) < best - 0.02
        assert last.predicted_output is not None


def test_the_last_run_at_the_cap_that_a_budget_pays_for_is_a_bet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And then the search goes on with what is left."""
    import carbs.analysis.planning.choice as choice

    left: list[float] = []
    recommended = choice.recommended

    def noted(*args: Any) -> Any:
        left.append(budget - spent)
        return recommended(*args)

    monkeypatch.setattr(choice, "recommended", noted)
    budget, spent, costs = 6e4, 0.0, []
    optimizer = CARBS(language_model_params(), max_cost=1e4, budget=budget, seed=0)
    while budget - spent > 0.02e4:
        suggestion = optimizer.suggest()
        costs.append(compute(suggestion.params))
        output = of_language_model(suggestion.params)
        optimizer.observe(suggestion, output=output, cost=costs[-1])
        spent += costs[-1]
    assert len(left) == 1
    assert 1e4 <= left[0] < 2e4
    i = int(np.argmin(np.abs(budget - np.cumsum([0.0, *costs[:-1]]) - left[0])))
    assert 0.9e4 < costs[i] <= 1e4
    outputs = [of_language_model(run.params) for run in optimizer.observations]
    assert outputs[i] < min(outputs[:i])
    assert i + 1 < len(costs)


def test_what_the_last_run_at_the_cap_is() -> None:
    both, trials = Allowance(20, 100.0), Allowance(n_trials=20)
    # Started, spent and the cost of what would come next.
    assert not both.is_last_at(30.0, 5, 30.0, 10.0)
    assert both.is_last_at(30.0, 5, 65.0, 10.0)
    assert not both.is_last_at(30.0, 5, 75.0, 10.0)  # too late
    assert not both.is_last_at(30.0, 19, 75.0, 10.0)
    assert both.is_last_at(30.0, 19, 5.0, 1.0)
    assert not both.is_last_at(30.0, 5, 110.0, 10.0)  # all is spent
    assert trials.is_last_at(30.0, 19, 1e9, 10.0)
    assert not trials.is_last_at(30.0, 18, 1e9, 10.0)
    assert not Allowance().is_last_at(30.0, 19, 0.0, 10.0)


def test_a_handful_of_runs_is_too_few_for_a_bet(monkeypatch: pytest.MonkeyPatch) -> None:
    import carbs.analysis.planning.choice as choice

    monkeypatch.setattr(choice, "recommended", lambda *_: pytest.fail("a plan was made"))
    bets(12, seed=0)
    with pytest.raises(pytest.fail.Exception):
        bets(20, seed=0)


def test_runs_that_no_plan_is_made_of_are_no_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    import carbs.analysis.planning.choice as choice

    def refuses(*_: Any) -> None:
        raise np.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr(choice, "recommended", refuses)
    optimizer, _ = bets(20, seed=0)
    assert "no plan is made of these runs" in caplog.text
    assert len(optimizer.observations) == 19


def test_a_bet_is_made_of_the_largest_losses() -> None:
    """Losses whose square is no number."""
    optimizer = CARBS(PARAMS, max_cost=MAX_COST, n_trials=20, seed=0)
    rng = np.random.default_rng(0)
    for _ in range(20):
        output, cost = 1e300 * (1 + rng.random()), 50.0 * rng.random()
        optimizer.observe(optimizer.suggest(), output=output, cost=cost)
    assert len(optimizer.observations) == 20


def test_a_bet_on_what_was_tried_is_no_bet() -> None:
    """Where there are few configurations, the last trial goes to another as well."""
    params = [Param("size", LinearSpace(min=1, max=24, is_integer=True), 1)]
    optimizer, tried = CARBS(params, max_cost=30.0, n_trials=22, seed=0), []
    for _ in range(22):
        suggestion = optimizer.suggest()
        assert suggestion.params not in tried
        tried.append(suggestion.params)
        size = float(suggestion.params["size"])
        optimizer.observe(suggestion, output=1 + size**-0.5, cost=size)


def test_without_a_cap_cost_counts_to_the_last_trial() -> None:
    """Nothing else would keep the last runs from growing and growing."""
    allowance = Allowance(n_trials=20)
    assert allowance.cost_exponent(19, 100.0, 1.0, 50.0) == 0
    assert allowance.cost_exponent(19, 100.0, 1.0, None) > 0.3
