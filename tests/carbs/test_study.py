"""A study and our records are the same thing; CarbsSampler with a list of parameters."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import optuna
import pytest
from optuna.study import Study
from optuna.trial import TrialState

from carbs import ChoiceSpace, LinearSpace, LogitSpace, LogSpace, MixtureSpace, Param, SearchSpace
from carbs.storage import PatientStorage
from carbs.study import (
    CarbsSampler,
    create_study,
    distributions,
    earlier_sweep,
    flatten,
    records,
    tell_failure,
    tell_forgotten,
    unflatten,
)

PARAMS = [
    Param("size", LogSpace(scale=0.5, min=16, max=4096, is_integer=True, rounding_factor=16), 64),
    Param("layers", LogSpace(min=1, is_integer=True), 2),
    Param("rate", LogSpace(scale=0.5), 1e-2),
    Param("decay", LogitSpace(), 0.9),
    Param("shift", LinearSpace(), 0.0),
    Param("optimizer", ChoiceSpace(["adam", "sgd"]), "adam"),
    Param("mix", MixtureSpace(["code", "prose", "none"]), {"code": 0.6, "prose": 0.4, "none": 0.0}),
]
SPACE = SearchSpace(PARAMS)


NewStudy = Callable[..., Study]


@pytest.fixture
def new_study(database: str) -> Iterator[NewStudy]:
    """Studies in a database, each of its own name."""
    storages: list[PatientStorage] = []

    def new_study(name: str = "", direction: Any = "minimize", **options: Any) -> Study:
        storages.append(PatientStorage(database))
        study = create_study(name or uuid.uuid4().hex, storages[-1], direction)
        study.sampler = CarbsSampler(PARAMS, **options)
        return study

    yield new_study
    for storage in storages:
        storage.remove_session()
        storage.engine.dispose()


def train(params: dict[str, Any]) -> tuple[float, float]:
    output = 1 + params["size"] ** -0.3 + (math.log10(params["rate"]) + 2.5) ** 2
    return output + (params["mix.code"] - 0.8) ** 2, 0.1 * params["size"]


def run_trials(study: Study, n: int) -> None:
    for _ in range(n):
        trial = study.ask()
        study.tell(trial, train(trial.params))


def assert_same(a: dict[str, Any], b: dict[str, Any]) -> None:
    """Equal but for rounding."""
    assert set(a) == set(b)
    for name, value in a.items():
        expected = b[name]
        is_text = isinstance(expected, str)
        assert value == (expected if is_text else pytest.approx(expected, rel=1e-9, abs=1e-12))


@pytest.fixture(autouse=True, scope="module")
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_asking_gives_every_parameter_in_its_space(new_study: NewStudy) -> None:
    study = new_study()
    for _ in range(8):
        trial = study.ask()
        params = unflatten(SPACE, trial.params)
        assert params is not None
        assert SPACE.check(params) == params
        assert set(trial.params) == set(distributions(SPACE))
        for name, distribution in trial.distributions.items():
            assert distribution._contains(distribution.to_internal_repr(trial.params[name]))
        assert sum(trial.params[f"mix.{k}"] for k in ("code", "prose", "none")) == pytest.approx(1)
        study.tell(trial, train(trial.params))
    assert_same(study.trials[0].params, flatten(SPACE.center_params))
    assert study.trials[-1].params != study.trials[0].params


def test_suggesting_a_parameter_gives_what_was_asked(new_study: NewStudy) -> None:
    """``trial.suggest_float`` in an ordinary objective, at the ranges of the list."""
    study = new_study()
    trial = study.ask()
    has = trial.params
    assert trial.suggest_float("rate", 1e-300, 1e300, log=True) == has["rate"]
    assert trial.suggest_int("size", 16, 4096, step=16) == has["size"]
    assert trial.suggest_categorical("optimizer", ["adam", "sgd"]) == has["optimizer"]
    assert trial.suggest_float("mix.code", 0, 1) == has["mix.code"]
    # A constant is no parameter.
    assert trial.suggest_categorical("version", [2]) == 2
    assert study.tell(trial, [1.0, 1.0]).state == TrialState.COMPLETE


ASKED = [
    (lambda t: t.suggest_float("rate", 1e-4, 3e-3, log=True), "'rate' as .*0.003, log=True.*Log"),
    (lambda t: t.suggest_float("rate", 1e-300, 1e300), "'rate' with log=False.*LogSpace"),
    (lambda t: t.suggest_int("rate", 1, 3, log=True), "'rate' by suggest_int.*LogSpace"),
    (lambda t: t.suggest_int("size", 16, 4096, log=True), "'size' with log=True.*step=16"),
    (lambda t: t.suggest_int("size", 16, 2048, step=16), "'size' as .*2048.*4096"),
    (lambda t: t.suggest_categorical("rate", [0.1, 0.2]), "'rate' by suggest_categorical.*Log"),
    (lambda t: t.suggest_categorical("optimizer", ["adam"]), r"\['adam'\].*\['adam', 'sgd'\]"),
    (lambda t: t.suggest_float("optimizer", 0, 1), "'optimizer' by suggest_float.*Choice"),
    (lambda t: t.suggest_float("rates", 1e-4, 1), "has only .*did you mean 'rate'"),
    (lambda t: t.suggest_float("temperature", 3, 4), "'temperature'.*add it to the list"),
]


@pytest.mark.parametrize(("ask", "message"), ASKED)
def test_what_contradicts_the_list_is_refused(ask: Callable[[Any], Any], message: str) -> None:
    study = create_study("contradicted", None)
    study.sampler = CarbsSampler(PARAMS)
    with pytest.raises(ValueError, match=message):
        study.optimize(ask, n_trials=1)
    assert study.trials[0].state == TrialState.FAIL
    assert records(study.trials, SPACE).failures == []  # it was no fault of the configuration


def test_a_parameter_that_is_inactive_in_a_trial_is_refused_there() -> None:
    study = create_study("inactive", None)
    study.sampler = CarbsSampler(TRAINER)
    with pytest.raises(ValueError, match="exists only when 'optimizer' is one of"):
        study.ask().suggest_float("momentum", 0, 1)


@pytest.mark.parametrize(
    ("enqueued", "message"),
    [
        ({"size": 8}, r"trial 0 was enqueued with size = 8.*suggest_int\(16, 4096, step=16\)"),
        ({"size": 17}, "size = 17"),
        ({"rate": "fast"}, "rate = 'fast'"),
        ({"optimizer": "lion"}, "optimizer = 'lion'"),
        ({"mix.code": 0.8, "mix.prose": 0.7}, "'mix' sum to 1.5"),
        ({"heat": 1.0}, "'heat', but the list of parameters has only"),
    ],
)
def test_what_is_enqueued_must_lie_in_the_list(enqueued: dict[str, Any], message: str) -> None:
    study = create_study("enqueued", None)
    study.sampler = CarbsSampler(PARAMS)
    study.enqueue_trial(enqueued)
    with pytest.raises(ValueError, match=message):
        study.ask()
    assert study.trials[0].state == TrialState.FAIL
    study.tell(study.ask(), [1.0, 1.0])  # and the search goes on
    assert records(study.trials, SPACE).failures == []


def test_optimize_runs_an_ordinary_objective(new_study: NewStudy) -> None:
    study = new_study()
    study.optimize(lambda trial: train(trial.params), n_trials=3)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3


def test_flattening_and_back() -> None:
    assert flatten(SPACE.center_params)["mix.prose"] == 0.4
    assert unflatten(SPACE, flatten(SPACE.center_params)) == SPACE.center_params
    lacking = flatten(SPACE.center_params)
    del lacking["mix.none"]
    assert unflatten(SPACE, lacking) is None


def test_enqueued_values_are_kept_and_the_rest_is_suggested(new_study: NewStudy) -> None:
    study = new_study()
    study.enqueue_trial({"rate": 0.125})
    study.enqueue_trial(
        {**flatten(SPACE.center_params), "size": 1024, "mix.code": 0.4, "mix.prose": 0.6}
    )
    first, second, third = study.ask(), study.ask(), study.ask()
    assert first.params["rate"] == 0.125
    assert_same(first.params, {**flatten(SPACE.center_params), "rate": 0.125})
    assert second.params["size"] == 1024
    assert second.params["mix.code"] == 0.4
    assert third.params["rate"] != 0.125
    # A prediction for something else than what is run would be a lie.
    assert "predicted" not in first.user_attrs


def test_an_enqueued_mixture_in_part_still_sums_to_one(new_study: NewStudy) -> None:
    study = new_study()
    study.enqueue_trial({"mix.code": 0.2})
    try:
        trial = study.ask()
    except ValueError as error:
        assert "mix" in str(error)  # refusing is as good
        return
    assert trial.params["mix.code"] == 0.2
    params = unflatten(SPACE, trial.params)
    assert params is not None
    assert SPACE.check(params) == params


def test_a_study_is_read_as_records(new_study: NewStudy) -> None:
    study = new_study()
    trials = [study.ask() for _ in range(6)]
    study.tell(trials[0], [2.5, 3.0])
    tell_failure(study, trials[1].number, "out of memory", 1.5)
    tell_forgotten(study, trials[2].number, "the node went away")
    study.tell(trials[3], [math.inf, 4.0])
    study.tell(trials[4], state=TrialState.FAIL)
    found = records(study.trials, SPACE)
    assert [(o.id, o.output, o.cost) for o in found.observations] == [("0", 2.5, 3.0)]
    assert_same(flatten(found.observations[0].params), flatten(SPACE.center_params))
    assert [(f.id, f.reason, f.cost) for f in found.failures] == [
        ("1", "out of memory", 1.5),
        ("3", "output is inf", 4.0),
        ("4", "failed", None),
    ]
    assert [s.id for s in found.pending] == ["5"]
    assert found.pending[0].params == unflatten(SPACE, trials[5].params)


def test_predictions_are_kept_with_their_trial(new_study: NewStudy) -> None:
    study = new_study()
    run_trials(study, 4)
    study.ask()
    pending = records(study.trials, SPACE).pending[0]
    for middle, interval in (
        (pending.predicted_output, pending.predicted_output_interval),
        (pending.predicted_cost, pending.predicted_cost_interval),
    ):
        assert middle is not None
        assert interval is not None
        assert interval[0] < middle < interval[1]
    assert pending.success_probability == 1


def test_trials_over_other_parameters_are_left_out(new_study: NewStudy) -> None:
    study = new_study()
    study.sampler = optuna.samplers.RandomSampler(seed=0)
    trial = study.ask()
    trial.suggest_float("rate", 0.1, 1)
    study.tell(trial, [1.0, 1.0])
    found = records(study.trials, SPACE)
    assert found.observations == found.failures == found.pending == []


def test_a_trial_whose_cost_is_not_positive_is_left_out_where_others_have_one(
    new_study: NewStudy, caplog: pytest.LogCaptureFixture
) -> None:
    study = new_study()
    study.tell(study.ask(), [1.0, 0.0])
    with pytest.raises(ValueError, match=r"trial 0 has cost 0.0, expected .* no other trial"):
        study.ask()
    study = new_study()
    run_trials(study, 1)
    study.tell(study.ask(), [1.0, 0.0])
    assert study.ask().number == 2
    assert "trial 1 has cost 0.0, expected a positive, finite number: the trial is" in caplog.text
    assert [run.id for run in earlier_sweep(study).observations] == ["0"]


@pytest.mark.parametrize(("cost", "message"), [(-1, "trial 1 has flops -1.0"), ("dear", "'dear'")])
def test_so_is_one_whose_attribute_is_no_cost(
    cost: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    study = optuna.create_study(sampler=CarbsSampler(PARAMS, cost="flops"))
    for flops in (1.0, cost):
        trial = study.ask()
        trial.set_user_attr("flops", flops)
        study.tell(trial, 1.0)
    assert study.ask().number == 2
    assert message in caplog.text


@pytest.mark.parametrize("cost", [-1.0, math.inf])
def test_an_impossible_cost_of_a_failure_does_not_spoil_the_study(
    cost: float, new_study: NewStudy
) -> None:
    study = new_study()
    trial = study.ask()
    try:
        tell_failure(study, trial.number, "diverged", cost)
    except ValueError as error:
        assert "cost" in str(error)  # refusing is as good
    study.ask()


def test_same_trials_and_seed_same_suggestion_in_any_storage(new_study: NewStudy) -> None:
    in_memory = create_study("in memory", None)
    in_memory.sampler = CarbsSampler(PARAMS, seed=3)
    name = uuid.uuid4().hex
    studies = [in_memory, new_study(name, seed=3)]
    for study in studies:
        run_trials(study, 6)
        tell_failure(study, study.ask().number, "diverged")
        study.ask()
    # One that opens the database anew knows as much.
    studies.append(new_study(name, seed=3))
    assert studies[2].trials[-1].params == studies[0].trials[-1].params
    expected = studies[0].ask().params
    assert studies[2].ask().params == expected
    other = new_study(seed=4)
    run_trials(other, 6)
    assert other.trials[-1].params != studies[0].trials[5].params


def test_maximising_studies_mirror_minimising_ones(new_study: NewStudy) -> None:
    down, up = new_study(), new_study(direction="maximize")
    for _ in range(6):
        a, b = down.ask(), up.ask()
        assert a.params == b.params
        output, cost = train(a.params)
        down.tell(a, [output, cost])
        up.tell(b, [-output, cost])


TRAINER = [
    Param("momentum", LogitSpace(), 0.9, when={"optimizer": ["sgd", "nesterov"]}),
    Param("optimizer", ChoiceSpace(["adam", "sgd", "nesterov"]), "adam"),
    Param("mix", MixtureSpace(["a", "b"]), {"a": 0.5, "b": 0.5}, when={"optimizer": "sgd"}),
    Param("width", LogSpace(scale=0.5, min=1, is_integer=True), 8),
]
TRAINER_SPACE = SearchSpace(TRAINER)
SGD = {"optimizer": "sgd", "momentum": 0.99, "mix": {"a": 0.2, "b": 0.8}, "width": 8}


def test_an_inactive_parameter_is_not_a_missing_one() -> None:
    assert unflatten(TRAINER_SPACE, {"optimizer": "adam", "width": 4}) == {
        "optimizer": "adam",
        "width": 4,
    }
    assert unflatten(TRAINER_SPACE, flatten(SGD)) == SGD
    for name in ("momentum", "mix.a", "optimizer", "width"):
        lacking = flatten(SGD)
        del lacking[name]
        assert unflatten(TRAINER_SPACE, lacking) is None
    # What another sampler stored beside it is no part of the configuration.
    surplus = {"optimizer": "adam", "width": 4, "momentum": 0.9}
    assert "momentum" not in (unflatten(TRAINER_SPACE, surplus) or {})


def test_a_study_with_conditions_and_constraints(database: str) -> None:
    storage = PatientStorage(database)
    constraints = ["width % 4 == 0", "momentum <= 0.95"]
    study = create_study("conditional", storage)
    study.sampler = CarbsSampler(TRAINER, constraints=constraints)
    space = SearchSpace(TRAINER, constraints)
    for i in range(9):
        trial = study.ask()
        params = unflatten(space, trial.params)
        assert params is not None
        assert space.check(params) == params
        assert space.allows(params)
        assert set(trial.params) == set(flatten(params))
        study.tell(trial, [1.0 / (i + 1), 1.0 + i])
    known = records(create_study("conditional", storage).trials, TRAINER_SPACE)
    assert [o.params for o in known.observations] == [
        unflatten(space, trial.params) for trial in study.trials
    ]
    assert len({str(o.params["optimizer"]) for o in known.observations}) > 1
    storage.remove_session()
    storage.engine.dispose()


def test_an_enqueued_value_decides_what_is_active() -> None:
    study = create_study("enqueued", None)
    study.sampler = CarbsSampler(TRAINER)
    study.enqueue_trial({"optimizer": "sgd", "mix.a": 0.3})
    study.enqueue_trial({"optimizer": "adam", "momentum": 0.99})
    first, second = study.ask(), study.ask()
    sgd = {"optimizer": "sgd", "momentum": 0.9, "mix.a": 0.3, "mix.b": 0.7, "width": 8}
    assert_same(first.params, sgd)
    assert set(second.params) == {"optimizer", "width"}


@pytest.mark.parametrize(
    "directions", [["minimize", "maximize"], ["minimize", "minimize", "minimize"]]
)
def test_other_objectives_are_refused(directions: list[Any]) -> None:
    study = optuna.create_study(directions=directions, sampler=CarbsSampler(PARAMS))
    with pytest.raises(ValueError, match=r"expects \(output, cost\)"):
        study.ask()


def test_creating_a_study_again_opens_it(new_study: NewStudy) -> None:
    name = uuid.uuid4().hex
    run_trials(new_study(name), 1)
    assert len(new_study(name).trials) == 1


def test_an_ended_study_is_an_earlier_sweep_for_another(new_study: NewStudy) -> None:
    study = new_study()
    run_trials(study, 3)
    tell_failure(study, study.ask().number, "out of memory")
    tell_forgotten(study, study.ask().number, "node lost")
    study.ask()
    old = earlier_sweep(study, defaults={"rate": 0.5})
    known = records(study.trials, SPACE)
    for ours, others in zip(
        (*old.observations, *old.failures), (*known.observations, *known.failures), strict=True
    ):
        assert ours == others.model_copy(update={"params": flatten(others.params)})
    assert (len(old.failures), old.defaults, old.direction) == (1, {"rate": 0.5}, "minimize")

    def following(**options: Any) -> dict[str, Any]:
        study = new_study(**options)
        run_trials(study, 1)
        return study.ask().params

    assert following(earlier=[old]) == following(earlier=[old]) != following()
    with pytest.raises(ValueError, match="to minimize its output, but this search is to maximize"):
        new_study(direction="maximize", earlier=[old]).ask()


def test_names_with_dots_are_one_parameter_and_a_mixture_another_to_a_later_search() -> None:
    params = [
        Param("model.width", LogSpace(), 8.0),
        Param("data.mix", MixtureSpace(["code", "prose"]), {"code": 0.25, "prose": 0.75}),
    ]
    study = create_study("dots", None)
    study.sampler = CarbsSampler(params)
    study.tell(study.ask(), [1.0, 1.0])
    assert set(study.trials[0].params) == {"model.width", "data.mix.code", "data.mix.prose"}
    more = MixtureSpace(["code", "prose", "logs"])
    center = {"code": 0.25, "prose": 0.75, "logs": 0.0}
    space = SearchSpace([params[0], Param("data.mix", more, center)])
    seen = earlier_sweep(study).seen_from(space, "minimize")
    assert seen.Z.tolist() == [[0.0] * 4]
    fewer = SearchSpace([Param("data.mix", MixtureSpace(["code", "logs"]), {"code": 1, "logs": 0})])
    (reason,) = earlier_sweep(study).seen_from(fewer, "minimize").left_out
    assert "'data.mix'" in reason and "prose" in reason


def test_an_earlier_study_may_have_one_objective_and_other_parameters() -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trial(optuna.create_trial(params={}, state=TrialState.FAIL))
    study.optimize(lambda trial: trial.suggest_float("heat", 0, 1), n_trials=1)
    old = earlier_sweep(study)
    trial = study.trials[1]
    heat, duration = trial.params["heat"], trial.duration
    assert duration is not None
    assert [(run.params, run.output, run.cost) for run in old.observations] == [
        ({"heat": heat}, heat, duration.total_seconds())
    ]
    assert (old.direction, old.failures) == ("maximize", ())
