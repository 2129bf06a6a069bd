"""CarbsSampler without a list of parameters: what is searched is what the trials ask for."""

from __future__ import annotations

import datetime
import math
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    MultiObjectiveSamplerTestCase,
    RelativeSamplerTestCase,
)
from optuna.trial import Trial, TrialState

import carbs.optimizer
from carbs import CARBS, EarlierSweep, LinearSpace, LogSpace, Observation, Param
from carbs.storage import PatientStorage
from carbs.study import CarbsSampler, create_study, earlier_sweep
from carbs.study.define_by_run import DefineByRunSpace, asked


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def new_study(n_objectives: int = 2, **options: Any) -> Study:
    return optuna.create_study(
        directions=["minimize"] * n_objectives, sampler=CarbsSampler(**options)
    )


def train(trial: Trial) -> tuple[float, float]:
    """A loss with its optimum at rate 3e-3, of which large widths get more."""
    rate = trial.suggest_float("model.rate", 1e-5, 1e-1, log=True)
    width = trial.suggest_int("width", 16, 1024, log=True)
    optimizer = trial.suggest_categorical("optimizer", ["adam", "sgd", None])
    loss = 1 + width**-0.3 + (math.log10(rate) + 2.5) ** 2 + (optimizer is None)
    if optimizer == "sgd":
        loss += (trial.suggest_float("momentum", 0, 0.99) - 0.9) ** 2
    return loss, 0.1 * width


def test_it_begins_in_the_middle_and_comes_to_the_optimum() -> None:
    study = new_study(max_cost=50)
    study.optimize(train, n_trials=25)
    first = study.trials[0].params
    assert first["model.rate"] == pytest.approx(1e-3)
    assert (first["width"], first["optimizer"]) == (128, "adam")
    assert "predicted" in study.trials[-1].user_attrs
    last = [math.log10(trial.params["model.rate"]) + 2.5 for trial in study.trials[-8:]]
    assert sorted(map(abs, last))[4] < 0.3  # at random, one in seven is so near
    assert len({trial.params["width"] for trial in study.trials}) > 10
    for trial in study.trials:
        assert ("momentum" in trial.params) == (trial.params["optimizer"] == "sgd")
        for name, distribution in trial.distributions.items():
            assert distribution._contains(distribution.to_internal_repr(trial.params[name]))


def test_values_have_the_types_and_steps_that_were_asked_for() -> None:
    def objective(trial: Trial) -> tuple[float, float]:
        n = trial.suggest_int("n", 3, 11, step=2)
        share = trial.suggest_float("share", 0.1, 0.7, step=0.2)
        heads = trial.suggest_int("heads", 1, 8, log=True)
        choice = trial.suggest_categorical("choice", [1, True, 2.5, "a", None])
        assert (type(n), type(share), type(heads)) == (int, float, int)
        assert n in (3, 5, 7, 9, 11)
        assert min(abs(share - step) for step in (0.1, 0.3, 0.5, 0.7)) < 1e-12
        assert any(choice is option for option in (1, True, 2.5, "a", None))
        return (n - 9) ** 2 + (share - 0.7) ** 2, 1.0 + heads

    study = new_study()
    study.optimize(objective, n_trials=14)
    assert len({tuple(trial.params.values()) for trial in study.trials}) > 10


def test_conditions_are_learnt_from_the_choices() -> None:
    def objective(trial: Trial) -> tuple[float, float]:
        optimizer = trial.suggest_categorical("optimizer", ["adam", "sgd", "lion"])
        if optimizer != "adam":
            nesterov = trial.suggest_categorical("nesterov", [True, False])
            if nesterov and optimizer == "sgd":
                trial.suggest_float("momentum", 0, 1)
        for i in range(trial.suggest_int("n_layers", 1, 3)):
            trial.suggest_int(f"width_{i}", 1, 9)
        return trial.suggest_float("x", 0, 1), 1.0

    study = optuna.create_study(
        directions=["minimize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=1)
    )
    study.optimize(objective, n_trials=40)
    inferred = DefineByRunSpace(asked(study.trials), study.trials)
    assert inferred.space is not None
    when = {param.name: dict(param.when) for param in inferred.space.params}
    assert when["x"] == when["optimizer"] == when["n_layers"] == when["width_2"] == {}
    assert when["nesterov"] == {"optimizer": ("sgd", "lion")}
    assert when["momentum"] == {"optimizer": ("sgd",), "nesterov": (True,)}
    for trial in study.trials:  # each of them is a point of the space
        params = inferred.read(trial.params)
        assert params is not None
        assert inferred.space.check(params) == params
        assert {**params, **trial.params} == params


def test_a_study_that_another_sampler_began_is_learnt_from() -> None:
    study = optuna.create_study(
        directions=["minimize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0)
    )
    study.optimize(train, n_trials=20)
    study.sampler = CarbsSampler(max_cost=50)
    study.optimize(train, n_trials=6)
    near = [abs(math.log10(trial.params["model.rate"]) + 2.5) for trial in study.trials[20:]]
    assert sorted(near)[3] < 0.3  # at random, one in seven is so near


def test_the_latest_ranges_count() -> None:
    study = new_study()

    def objective(low: float, high: float) -> Callable[[Trial], tuple[float, float]]:
        def objective(trial: Trial) -> tuple[float, float]:
            return trial.suggest_float("x", low, high), 1.0

        return objective

    study.optimize(objective(0, 10), n_trials=6)
    study.optimize(objective(20, 30), n_trials=6)
    values = [trial.params["x"] for trial in study.trials[6:]]
    assert all(20 <= value <= 30 for value in values)
    # The first was suggested for the range before: it has the value that comes nearest.
    assert values[0] == 20
    assert len(set(values)) == 6


def test_names_come_and_go() -> None:
    study = new_study()
    study.optimize(lambda t: (t.suggest_float("old", 0, 1), 1.0), n_trials=4)
    study.optimize(lambda t: (t.suggest_float("new", 0, 1), 1.0), n_trials=11)
    assert set(asked(study.trials)) == {"new"}
    assert study.trials[4].params == {"new": 0.5}
    assert min(trial.params["new"] for trial in study.trials[4:]) < 0.2


def test_enqueued_values_are_checked_and_the_first_are_the_centre() -> None:
    study = new_study()
    study.enqueue_trial({"model.rate": 0.02, "width": 32})
    study.optimize(train, n_trials=3)
    first, second = study.trials[0].params, study.trials[1].params
    assert (first["model.rate"], first["width"], first["optimizer"]) == (0.02, 32, "adam")
    assert 0.005 < second["model.rate"] < 0.08
    assert 10 < second["width"] < 100
    assert "predicted" not in study.trials[0].user_attrs

    study.enqueue_trial({"width": 4096})
    with pytest.raises(ValueError, match=r"width = 4096.*suggest_int\(16, 1024, log=True\)"):
        study.optimize(train, n_trials=1)
    study.optimize(train, n_trials=1)
    assert [trial.state.name for trial in study.trials[3:]] == ["FAIL", "COMPLETE"]

    # What nobody has asked for yet is checked as it is asked for.
    study = new_study()
    study.enqueue_trial({"width": 8})
    with pytest.raises(ValueError, match=r"trial 0 was enqueued with width = 8"):
        study.optimize(train, n_trials=1)
    assert study.trials[0].state == TrialState.FAIL
    assert "forgotten" in study.trials[0].user_attrs


WIDTH = Param("width", LogSpace(min=1, max=1000, is_integer=True), 32)


def in_a_loop(
    params: list[Param], train: Callable[[Any], tuple[float, float] | None], n: int, **options: Any
) -> list[dict[str, Any]]:
    """What CARBS itself tries over the same ranges."""
    optimizer = CARBS(params, **options)
    for _ in range(n):
        suggestion = optimizer.suggest()
        measured = train(suggestion.params)
        if measured is None:
            optimizer.observe_failure(suggestion, reason="failed")
        else:
            optimizer.observe(suggestion, output=measured[0], cost=measured[1])
    runs = sorted([*optimizer.observations, *optimizer.failures], key=lambda run: int(run.id or 0))
    return [run.params for run in runs]


def test_one_objective_with_the_cost_in_an_attribute() -> None:
    study = new_study(1, cost="gpu_seconds", max_cost=20.0)

    def objective(trial: Trial) -> float:
        width = trial.suggest_int("width", 1, 1000, log=True)
        trial.set_user_attr("gpu_seconds", float(width))
        return 1 / width

    study.optimize(objective, n_trials=12)
    widths = [trial.params for trial in study.trials]
    assert widths == in_a_loop([WIDTH], lambda p: (1 / p["width"], p["width"]), 12, max_cost=20.0)
    assert sorted(w["width"] for w in widths[6:])[3] <= 20
    old = earlier_sweep(study, cost="gpu_seconds")
    assert [run.cost for run in old.observations] == [w["width"] for w in widths]


def test_one_objective_with_durations_as_costs() -> None:
    study = new_study(1, max_cost=60.0)
    for _ in range(10):
        trial = study.ask()
        width = trial.suggest_int("width", 1, 1000, log=True)
        # As if it had run for three seconds for each of the width.
        stored = study._storage.get_trial(trial._trial_id)
        assert stored.datetime_start is not None
        stored.datetime_start -= datetime.timedelta(seconds=3 * width)
        study.tell(trial, 1 / width)
    widths = [trial.params["width"] for trial in study.trials]
    assert widths[0] == 32  # beyond what a run may cost, but who knew
    assert sorted(widths[5:])[2] <= 20


def test_a_cost_that_no_trial_says_is_missed() -> None:
    study = new_study(1, cost="seconds")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(ValueError, match=r"trials \[0\] have no user attribute 'seconds'"):
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=1)
    with pytest.raises(ValueError, match="the cost is the second objective"):
        new_study(2, cost="seconds").ask()


def test_trials_without_a_cost_are_left_out_where_others_have_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def objective(trial: Trial) -> float:
        trial.set_user_attr("seconds", "2.5")
        return trial.suggest_float("x", 0, 1)

    study = new_study(1, cost="seconds")
    study.add_trial(
        optuna.create_trial(
            params={"x": 0.25}, distributions={"x": FloatDistribution(0, 1)}, value=1.0
        )
    )
    study.sampler = CarbsSampler()  # it was added, and so has no duration either
    study.optimize(objective, n_trials=1)
    assert "trials [0] have no duration" in caplog.text
    study.sampler = CarbsSampler(cost="seconds")
    study.optimize(objective, n_trials=2)
    assert "trials [0] have no user attribute 'seconds'" in caplog.text


def test_failures_teach_and_running_trials_are_known() -> None:
    study = new_study()

    def objective(trial: Trial) -> tuple[float, float]:
        x = trial.suggest_float("x", 0, 10)
        if x > 6:
            raise MemoryError
        return (x - 10) ** 2, 1.0

    study.optimize(objective, n_trials=12, catch=MemoryError)
    assert {trial.state for trial in study.trials} == {TrialState.COMPLETE, TrialState.FAIL}
    x = Param("x", LinearSpace(min=0, max=10), 5.0)
    assert [trial.params for trial in study.trials] == in_a_loop(
        [x], lambda p: ((p["x"] - 10) ** 2, 1.0) if p["x"] <= 6 else None, 12
    )
    # Asked for at once, beside the limit that is now known, no two are the same.
    asked_for = [study.ask().suggest_float("x", 0, 10) for _ in range(3)]
    assert len({round(x, 6) for x in asked_for}) == 3


def test_of_a_running_trial_also_what_it_has_not_asked_for_is_known() -> None:
    params = [
        Param("x", LinearSpace(min=0, max=1), 0.5),
        Param("y", LinearSpace(min=0, max=1), 0.5),
    ]
    optimizer, study = CARBS(params), new_study()
    for _ in range(5):
        suggestion, trial = optimizer.suggest(), study.ask()
        point = {name: trial.suggest_float(name, 0, 1) for name in ("x", "y")}
        assert point == suggestion.params
        optimizer.observe(suggestion, output=point["x"] - point["y"], cost=1.0)
        study.tell(trial, [point["x"] - point["y"], 1.0])
    pending, first = optimizer.suggest(), study.ask()
    assert first.suggest_float("x", 0, 1) == pending.params["x"]
    second = study.ask()
    assert {name: second.suggest_float(name, 0, 1) for name in ("x", "y")} == (
        optimizer.suggest().params
    )


def test_of_two_threads_the_second_knows_what_the_first_will_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n_pending, both = [], threading.Barrier(2)
    propose = carbs.optimizer.propose

    def spying(
        space: Any, observed: Any, failed: Any, pending: Any, *more: Any, **named: Any
    ) -> Any:
        n_pending.append(len(pending))
        return propose(space, observed, failed, pending, *more, **named)

    study = new_study()
    study.optimize(train, n_trials=5)
    monkeypatch.setattr(carbs.optimizer, "propose", spying)

    def objective(trial: Trial) -> tuple[float, float]:
        both.wait(60)
        measured = train(trial)
        both.wait(60)
        return measured

    study.optimize(objective, n_trials=2, n_jobs=2)
    assert n_pending == [0, 1]


def test_same_trials_and_seed_same_suggestions() -> None:
    def params(**options: Any) -> list[dict[str, Any]]:
        study = new_study(**options)
        study.optimize(train, n_trials=7)
        return [trial.params for trial in study.trials]

    assert params() == params() != params(seed=1)


def test_earlier_sweeps_say_where_to_begin() -> None:
    runs = [Observation(params={"x": i / 8}, output=(i / 8 - 0.9) ** 2, cost=1.0) for i in range(9)]
    earlier = [EarlierSweep(observations=tuple(runs))]
    study = new_study(earlier=earlier)
    study.optimize(lambda trial: (trial.suggest_float("x", 0, 1), 1.0), n_trials=3)
    x = Param("x", LinearSpace(min=0, max=1), 0.5)
    expected = in_a_loop([x], lambda p: (p["x"], 1.0), 3, earlier=earlier)
    assert [trial.params for trial in study.trials] == expected
    assert expected != in_a_loop([x], lambda p: (p["x"], 1.0), 3)


def test_constraints_need_the_list() -> None:
    with pytest.raises(ValueError, match="constraints need to know the parameters"):
        CarbsSampler(constraints=["a < b"])


def test_partial_fixing_and_ask_with_distributions() -> None:
    study = new_study()
    study.optimize(train, n_trials=3)
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.sampler = optuna.samplers.PartialFixedSampler({"width": 77}, study.sampler)
    study.optimize(train, n_trials=2)
    assert [trial.params["width"] for trial in study.trials[3:]] == [77, 77]
    study.sampler = CarbsSampler()
    trial = study.ask(
        {
            "model.rate": FloatDistribution(1e-5, 1e-1, log=True),
            "width": IntDistribution(16, 1024, log=True),
            "optimizer": CategoricalDistribution(["adam", "sgd", None]),
        }
    )
    assert set(trial.params) == {"model.rate", "width", "optimizer"}
    study.tell(trial, [1.0, 1.0])


@pytest.fixture
def storage(database: str) -> Iterator[PatientStorage]:
    storage = PatientStorage(database)
    yield storage
    storage.remove_session()
    storage.engine.dispose()


def test_two_threads_on_a_database(storage: PatientStorage) -> None:
    study = create_study(uuid.uuid4().hex, storage)
    study.sampler = CarbsSampler(max_cost=50)
    study.optimize(train, n_trials=10, n_jobs=2)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 10
    assert len({str(trial.params) for trial in study.trials}) > 8


WORKER = """
import sys
import optuna
from carbs.study import CarbsSampler, create_study, earlier_sweep
from tests_objective import train

study = create_study(sys.argv[2], sys.argv[1])
study.sampler = CarbsSampler(max_cost=50)
study.optimize(train, n_trials=4)
"""


def test_two_processes_on_a_database(database: str, tmp_path: Any) -> None:
    name = uuid.uuid4().hex
    storage = PatientStorage(database)
    study = create_study(name, storage)
    objective = """
import math

def train(trial):
    rate = trial.suggest_float("rate", 1e-5, 1e-1, log=True)
    width = trial.suggest_int("width", 16, 1024, log=True)
    return 1 + width**-0.3 + (math.log10(rate) + 2.5) ** 2, 0.1 * width
"""
    (tmp_path / "tests_objective.py").write_text(objective)
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "worker.py", database, name]
    workers = [
        subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 8
    assert len({str(trial.params) for trial in study.trials}) > 6
    storage.remove_session()
    storage.engine.dispose()


class _OurSampler:
    @pytest.fixture
    def sampler(self) -> Callable[[], BaseSampler]:
        return CarbsSampler

    @pytest.fixture(autouse=True, params=["memory", "sqlite"])
    def place(
        self, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[None]:
        """Where the suite's studies lie, which names no storage."""
        create, storages = optuna.create_study, []

        def create_in_file(**options: Any) -> Study:
            if options.get("storage") is None:
                file = tmp_path / f"{len(storages)}.db"
                storages.append(optuna.storages.RDBStorage(f"sqlite:///{file}"))
                options["storage"] = storages[-1]
            return create(**options)

        if request.param == "sqlite":
            monkeypatch.setattr(optuna, "create_study", create_in_file)
            monkeypatch.setattr(optuna.study, "create_study", create_in_file)
        yield
        for storage in storages:
            storage.remove_session()
            storage.engine.dispose()


class TestBasicConformance(_OurSampler, BasicSamplerTestCase):
    pass


class TestRelativeConformance(_OurSampler, RelativeSamplerTestCase):
    pass


class TestMultiObjectiveConformance(_OurSampler, MultiObjectiveSamplerTestCase):
    pass


# SingleOnlySamplerTestCase is for samplers that refuse two objectives; ours is made for them.
