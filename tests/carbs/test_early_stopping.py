"""Early stopping: what the bound promises, whom it never stops, and how studies record it."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, strategies as st
from optuna.study import Study
from optuna.trial import TrialState

from carbs import LogSpace, Param, SearchSpace
from carbs.early_stopping import FinishedRun, Forecast, forecast, is_off_front
from carbs.study import (
    CURVE,
    CarbsSampler,
    FrontPruner,
    create_study,
    earlier_sweep,
    records,
    set_attribute,
    tell_stopped,
)

PARAMS = [Param("x", LogSpace(scale=0.5), 1.0)]


def make_run(rng: np.random.Generator, n_reports: int = 9) -> FinishedRun:
    """A power law in progress with a random end, exponent and noise; the cost is random too."""
    progress = np.arange(1, n_reports + 1) / (n_reports + 1)
    end = 2 + rng.exponential(0.5)
    fall = rng.lognormal(-1, 0.5) * (progress ** -rng.uniform(0.2, 0.6) - 1)
    outputs = end + fall + 0.02 * rng.standard_normal(n_reports)
    cost = rng.lognormal(0, 1)
    return FinishedRun(np.stack([progress, outputs, cost * progress], axis=1), end, cost)


def make_runs(n: int, seed: int = 0) -> list[FinishedRun]:
    rng = np.random.default_rng(seed)
    return [make_run(rng) for _ in range(n)]


def turned(run: FinishedRun, scale: float = 1.0, shift: float = 0.0) -> FinishedRun:
    """The same run with ``scale * output + shift`` for every output."""
    curve = run.curve * [1, scale, 1] + [0, shift, 0]
    return FinishedRun(curve, scale * run.output + shift, run.cost)


@pytest.mark.parametrize("miss_share", [0.05, 0.2])
def test_no_more_than_the_miss_share_ends_below_the_bound_at_any_report(miss_share: float) -> None:
    n_draws, misses = 150, 0
    for seed in range(n_draws):
        *finished, run = make_runs(40, seed)
        ends = [forecast(run.curve[:t], finished, miss_share=miss_share) for t in range(2, 10)]
        misses += any(end is not None and run.output < end.best_output for end in ends)
    # Two standard errors; and the bound is no idle one.
    error = 2 * np.sqrt(miss_share * (1 - miss_share) / n_draws)
    assert miss_share - 1.5 * error < misses / n_draws < miss_share + error


def test_the_median_lies_in_the_middle_and_the_deviation_says_how_far_off_it_is() -> None:
    z = []
    for seed in range(100):
        *finished, run = make_runs(40, seed)
        end = forecast(run.curve[:5], finished)
        assert end is not None
        z.append((run.output - end.output) / end.output_deviation)
    assert abs(np.median(z)) < 0.35
    assert 0.5 < np.mean(np.abs(z) < 1) < 0.85  # 0.68 of a normal distribution


@pytest.mark.parametrize(("miss_share", "n_needed"), [(0.05, 19), (0.1, 9), (0.5, 1)])
def test_too_few_finished_curves_give_no_answer(miss_share: float, n_needed: int) -> None:
    *finished, run = make_runs(n_needed + 1)
    curve = run.curve + np.array([0, 1000, 0])
    assert forecast(curve[:8], finished[1:], miss_share=miss_share) is None
    assert forecast(curve[:8], finished, miss_share=miss_share) is not None
    # Neither do runs that never reported.
    silent = [FinishedRun(np.empty((0, 3)), 2.0, 1.0)] * 100
    assert forecast(curve[:8], finished[1:] + silent, miss_share=miss_share) is None


def test_runs_count_whose_curves_start_no_later() -> None:
    *finished, run = make_runs(20)
    late = [FinishedRun(other.curve[4:], other.output, other.cost) for other in finished]
    assert forecast(run.curve[:6], late) is None
    assert forecast(run.curve[4:6], late) is not None


@pytest.mark.parametrize(
    ("n_reports", "min_progress", "is_given"), [(1, 0.2, False), (2, 0.2, True), (2, 0.3, False)]
)
def test_no_answer_before_the_least_progress(
    n_reports: int, min_progress: float, is_given: bool
) -> None:
    *finished, run = make_runs(30)
    end = forecast(run.curve[:n_reports], finished, min_progress=min_progress)
    assert (end is not None) == is_given


def test_a_run_at_its_end_is_not_stopped() -> None:
    *finished, run = make_runs(30)
    assert forecast(np.append(run.curve, [[1.0, 99.0, run.cost]], axis=0), finished) is None


@given(
    seed=st.integers(0, 10_000),
    n_reports=st.integers(1, 9),
    miss_share=st.floats(0.03, 0.97),
    gap=st.floats(0, 1),
    rise=st.floats(0, 3),
)
def test_a_run_that_is_as_good_as_the_front_is_never_stopped(
    seed: int, n_reports: int, miss_share: float, gap: float, rise: float
) -> None:
    """Also where all runs end higher than what they reported, so that it is forecast to rise."""
    *finished, run = make_runs(40, seed)
    finished = [FinishedRun(r.curve - np.array([0, rise, 0]), r.output, r.cost) for r in finished]
    curve = run.curve[:n_reports].copy()
    curve[-1, 1] = min(other.output for other in finished) - gap
    end = forecast(curve, finished, miss_share=miss_share)
    assert end is None or not is_off_front(end, finished)


@given(seed=st.integers(0, 10_000), n_reports=st.integers(2, 9))
def test_the_cheapest_run_is_never_stopped(seed: int, n_reports: int) -> None:
    *finished, run = make_runs(40, seed)
    curve = run.curve[:n_reports] * [1, 100, 0] + [0, 0, 1e-9]
    end = forecast(curve, finished)
    assert end is not None
    assert not is_off_front(end, finished)


def test_a_hopeless_run_is_off_the_front_and_its_cost_is_that_of_the_whole() -> None:
    *finished, run = make_runs(40)
    curve = run.curve[:4] + np.array([0, 5, 0])
    end = forecast(curve, finished)
    assert end is not None
    assert end.cost == pytest.approx(run.cost)
    assert end.best_output < end.output < curve[-1, 1]
    assert is_off_front(end, finished)


@given(
    seed=st.integers(0, 1000),
    n_reports=st.integers(2, 9),
    scale=st.floats(0.01, 100),
    shift=st.floats(-100, 100),
    is_turned=st.booleans(),
)
def test_units_and_direction_do_not_matter(
    seed: int, n_reports: int, scale: float, shift: float, is_turned: bool
) -> None:
    *finished, run = make_runs(25, seed)
    sign = -1 if is_turned else 1
    scale, shift = sign * scale, sign * shift
    direction: Any = "maximize" if is_turned else "minimize"
    others = [turned(other, scale, shift) for other in finished]
    curve = turned(run, scale, shift).curve[:n_reports]
    here, there = (
        forecast(run.curve[:n_reports], finished),
        forecast(curve, others, direction=direction),
    )
    assert here is not None
    assert there is not None
    close = {"rel": 1e-4, "abs": 1e-4 * abs(scale)}
    assert there.output == pytest.approx(scale * here.output + shift, **close)
    assert there.best_output == pytest.approx(scale * here.best_output + shift, **close)
    assert there.output_deviation == pytest.approx(abs(scale) * here.output_deviation, **close)


def test_is_off_front_in_either_direction() -> None:
    finished = [FinishedRun(np.empty((0, 3)), 2.0, 1.0), FinishedRun(np.empty((0, 3)), 1.0, 3.0)]

    def end(best_output: float, cost: float) -> Forecast:
        return Forecast(0.0, 1.0, best_output, cost)

    assert is_off_front(end(2.1, 1.0), finished)
    assert not is_off_front(end(2.0, 1.0), finished)
    assert not is_off_front(end(9.0, 0.9), finished)
    assert is_off_front(end(1.5, 3.0), finished)
    assert is_off_front(end(1.5, 1.0), finished, direction="maximize")
    assert not is_off_front(end(2.5, 9.0), finished, direction="maximize")


@pytest.mark.parametrize("miss_share", [0.0, 1.0, float("nan")])
def test_an_impossible_miss_share_is_refused(miss_share: float) -> None:
    with pytest.raises(ValueError, match=r"miss_share is .*expected a share in \(0, 1\)"):
        forecast(make_runs(1)[0].curve, [], miss_share=miss_share)


def run_trial(study: Study, extra: float, sign: float) -> None:
    """Nine reports that fall to ``1 + extra``, or mirrored; a study of two objectives."""
    trial = study.ask()
    curve = [[step / 10, sign * (2 - step / 10 + extra), step / 5] for step in range(1, 10)]
    set_attribute(study, trial.number, CURVE, curve)
    study.tell(trial, [sign * (1.0 + extra), 2.0])


def test_curves_may_be_lists_and_other_shapes_are_refused() -> None:
    curve = [[0.5, 2.0, 1.0], [0.75, 1.5, 1.5]]
    runs = [FinishedRun(curve, 1.0 + i, 2.0) for i in range(9)]  # type: ignore[arg-type]
    arrays = [FinishedRun(np.array(curve), 1.0 + i, 2.0) for i in range(9)]
    end = forecast(curve, runs, miss_share=0.2)
    assert end is not None
    assert end == forecast(np.array(curve), arrays, miss_share=0.2)
    assert forecast([], runs) is None
    with pytest.raises(ValueError, match=r"shape \(2,\), expected \(t, 3\): rows of progress"):
        forecast([0.5, 2.0], runs)


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1.0), ("maximize", -1.0)])
def test_a_study_of_two_objectives_is_pruned_by_its_curves(direction: Any, sign: float) -> None:
    study = create_study("test", None, direction)
    study.sampler = CarbsSampler(PARAMS)
    pruner = FrontPruner(miss_share=0.2)
    for extra in (0.0, 0.1, 0.2, 0.3):
        run_trial(study, extra, sign)

    def asks_to_stop(output: float) -> bool:
        trial = study.trials[-1]
        curve = [[0.1, sign * output, 0.2], [0.5, sign * output, 1.0]]
        set_attribute(study, trial.number, CURVE, curve)
        return pruner.prune(study, study.trials[-1])

    study.ask()
    assert not asks_to_stop(1.5)
    assert asks_to_stop(9.0)
    assert study.trials[-1].state == TrialState.RUNNING  # to stop it is the caller's part
    tell_stopped(study, 4, spent=1.25)
    assert study.trials[-1].state == TrialState.PRUNED
    stopped = records(study.trials, SearchSpace(PARAMS)).observations[-1]
    assert (stopped.id, stopped.cost, stopped.spent) == ("4", 2.0, 1.25)
    assert 1.0 < sign * stopped.output < 9.0
    assert stopped.is_forecast
    old = earlier_sweep(study)
    assert old.observations[-1] == stopped
    seen = old.seen_from(SearchSpace(PARAMS), direction)
    assert seen.outputs[-1] == sign * stopped.output
    assert seen.deviations.tolist() == [0.0] * 4 + [stopped.output_deviation]
    # The search goes on with it.
    assert study.ask().number == 5


def test_a_study_of_one_objective_prunes_as_with_any_other_pruner() -> None:
    study = optuna.create_study(
        sampler=CarbsSampler(PARAMS), pruner=FrontPruner(miss_share=0.2, n_steps=10)
    )

    def objective(trial: optuna.Trial) -> float:
        extra = 8.0 if trial.number == 5 else 0.6 - 0.1 * trial.number
        for step in range(1, 11):
            trial.report(2 - step / 10 + extra, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return 1 + extra

    study.optimize(objective, n_trials=7)
    states = [trial.state for trial in study.trials]
    assert states[5] == TrialState.PRUNED
    assert states[:5] == [TrialState.COMPLETE] * 5
    stopped = next(
        o for o in records(study.trials, SearchSpace(PARAMS)).observations if o.id == "5"
    )
    # It took this long for a fifth of its steps.
    duration = study.trials[5].duration
    assert duration is not None
    assert stopped.spent is not None
    assert 0 < stopped.spent <= duration.total_seconds()
    assert stopped.cost == pytest.approx(5 * stopped.spent)
    assert stopped.is_forecast


@pytest.mark.parametrize("tells", [True, False])
def test_with_one_objective_a_dear_trial_does_not_stop_a_cheap_one_on_the_front(
    tells: bool,
) -> None:
    """Trials 0 to 4 and 5 are ever cheaper and worse: all on the front. Trial 6 is dear and bad."""
    study = optuna.create_study(
        sampler=CarbsSampler(PARAMS, cost="flops"),
        pruner=FrontPruner(miss_share=0.2, n_steps=10, cost="flops"),
    )

    def objective(trial: optuna.Trial) -> float:
        n = trial.number
        flops, extra = (10.0 - n, 0.1 * n) if n < 6 else (20.0, 8.0)
        for step in range(1, 11):
            if tells:
                trial.set_user_attr("flops", flops * step / 10)
            trial.report(2 - step / 10 + extra, step)
            if trial.should_prune():
                raise optuna.TrialPruned
        trial.set_user_attr("flops", flops)
        return 1 + extra

    study.optimize(objective, n_trials=7)
    states = [trial.state for trial in study.trials]
    assert states[:6] == [TrialState.COMPLETE] * 6
    # Nobody knows what it costs if it does not say so.
    assert states[6] == (TrialState.PRUNED if tells else TrialState.COMPLETE)
    last = records(study.trials, SearchSpace(PARAMS), cost="flops").observations[-1]
    assert last.cost == pytest.approx(20)
    assert last.spent == (pytest.approx(4) if tells else None)


def test_a_cost_beside_a_second_objective_is_refused() -> None:
    study = create_study("test", None)
    study.sampler = CarbsSampler(PARAMS)
    study.ask()
    with pytest.raises(ValueError, match=r"cost='flops' names a user attribute.*leave it out"):
        FrontPruner(cost="flops").prune(study, study.trials[0])


def test_steps_without_their_number_are_refused_with_the_remedy() -> None:
    study = optuna.create_study(pruner=FrontPruner())
    trial = study.ask()
    trial.report(1.0, 1)
    with pytest.raises(ValueError, match="tell FrontPruner n_steps"):
        trial.should_prune()


def test_a_pruned_trial_without_a_forecast_is_a_failure_of_its_configuration() -> None:
    study = create_study("test", None)
    study.sampler = CarbsSampler(PARAMS)
    first = study.ask()
    study.tell(first, state=TrialState.PRUNED)
    for found in (records(study.trials, SearchSpace(PARAMS)), earlier_sweep(study)):
        assert not found.observations
        assert [(f.id, f.reason, f.cost, f.params) for f in found.failures] == [
            ("0", "pruned", None, first.params)  # in which unit its duration is nobody knows
        ]
    assert study.ask().params != first.params


@pytest.mark.parametrize(("cost", "spent"), [("flops", 3.0), (None, 7.0)])
def test_a_pruned_trial_of_one_objective_costs_what_it_spent(
    cost: str | None, spent: float
) -> None:
    study = optuna.create_study(sampler=CarbsSampler(PARAMS, cost=cost))
    trial = study.ask()
    trial.report(2.0, 1)
    trial.set_user_attr("flops", 3.0)
    study.tell(trial, state=TrialState.PRUNED)
    ended = study.trials[0]
    assert ended.datetime_complete is not None
    ended.datetime_start = ended.datetime_complete - timedelta(seconds=7)
    ended.system_attrs = {}
    (failure,) = records([ended], SearchSpace(PARAMS), cost=cost).failures
    assert failure.cost == pytest.approx(spent)


def test_a_search_goes_on_elsewhere_than_where_trials_are_pruned() -> None:
    """By another pruner than :class:`FrontPruner`, which says nothing of how they would end."""
    study = optuna.create_study(
        sampler=CarbsSampler(cost="cost"), pruner=optuna.pruners.MedianPruner(n_startup_trials=3)
    )

    def objective(trial: optuna.Trial) -> float:
        width = trial.suggest_int("width", 16, 256, log=True)
        rate = trial.suggest_float("rate", 1e-4, 1e-1, log=True)
        output = 1 + width**-0.5 + 0.1 * (math.log10(rate) + 2.5) ** 2
        for step in range(5):
            trial.report(output + 1 / (step + 1), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        trial.set_user_attr("cost", (width / 64) ** 2)
        return output

    study.optimize(objective, n_trials=20)
    late = [trial.params for trial in study.trials[-12:]]
    assert len({params["width"] for params in late}) > 2
    assert len({round(math.log10(params["rate"]), 1) for params in late}) > 2
