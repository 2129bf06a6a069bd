"""A study as a frame: one row a trial, in words that say what became of it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest

from carbs import (
    ChoiceSpace,
    LinearSpace,
    LogitSpace,
    LogSpace,
    MixtureSpace,
    Param,
    SearchSpace,
    minimize,
)
from carbs.analysis import fit_front, hyperparameter_curves, plan
from carbs.analysis.front.trials import frame_records, study_space, trials_frame
from carbs.study import (
    STOPPED,
    CarbsSampler,
    create_study,
    set_attribute,
    tell_failure,
    tell_forgotten,
    tell_stopped,
)

PARAMS = [
    Param("width", LogSpace(min=16, is_integer=True, rounding_factor=16), 64),
    Param("mix", MixtureSpace(["a", "b"]), {"a": 0.5, "b": 0.5}),
]


def test_every_state_has_its_row() -> None:
    study = create_study("frame", None)
    study.sampler = CarbsSampler(PARAMS)
    trials = [study.ask() for _ in range(6)]
    trials[0].set_user_attr("metrics", {"flops": 1e9, "evaluations": {"values": {"accuracy": 0.5}}})
    study.tell(trials[0], [2.5, 3.0])
    tell_failure(study, 1, "out of memory", 1.5)
    tell_forgotten(study, 2, "the node went away")
    forecast = {"output": 2.6, "output_deviation": 0.1, "cost": 8.0, "spent": None}
    set_attribute(study, 3, STOPPED, forecast)
    tell_stopped(study, 3, spent=2.0)
    study.tell(5, state=optuna.trial.TrialState.PRUNED)  # without a forecast of its end
    frame = trials_frame(study, SearchSpace(PARAMS)).set_index("number")
    states = ["complete", "failed", "forgotten", "stopped", "running", "failed"]
    assert frame["state"].tolist() == states
    assert frame.loc[5, "reason"] == "pruned"
    assert frame.loc[0, ["output", "cost", "width", "mix.a"]].tolist() == [2.5, 3.0, 64, 0.5]
    assert frame.loc[0, "metrics.evaluations.values.accuracy"] == 0.5
    assert frame.loc[1, ["reason", "cost"]].tolist() == ["out of memory", 1.5]
    assert math.isnan(frame.loc[1, "output"])
    assert frame.loc[2, "reason"] == "the node went away"
    assert math.isnan(frame.loc[3, "output"])  # a forecast is no measurement
    assert frame.loc[3, "cost"] == 2.0


def test_a_frame_of_many_metrics_can_be_added_to() -> None:
    """Pandas warns of a frame that is in many pieces, and warnings are errors here."""
    study = create_study("frame", None)
    study.sampler = CarbsSampler(PARAMS)
    for _ in range(3):
        trial = study.ask()
        trial.set_user_attr("metrics", {f"metric {i}": float(i) for i in range(150)})
        study.tell(trial, [2.5, 3.0])
    frame = trials_frame(study, SearchSpace(PARAMS))
    assert frame.assign(inside=True)["inside"].all()


def test_an_inactive_parameter_has_a_column_without_a_value() -> None:
    params = [
        Param("optimizer", ChoiceSpace(["adam", "sgd"]), "adam"),
        Param("momentum", LinearSpace(min=0, max=1), 0.9, when={"optimizer": "sgd"}),
        Param("rate", LogSpace(), 1.0, when={"optimizer": "sgd"}),
    ]
    study = create_study("frame", None)
    study.sampler = CarbsSampler(params)
    study.tell(study.ask(), [1.0, 1.0])
    assert trials_frame(study, SearchSpace(params))["momentum"].isna().all()
    study.enqueue_trial({"optimizer": "sgd", "momentum": 0.5})
    study.tell(study.ask(), [1.0, 1.0])
    frame = trials_frame(study, SearchSpace(params))
    assert frame["momentum"].isna().tolist() == [True, False]
    assert frame["momentum"][1] == 0.5


def test_a_study_that_does_not_say_what_it_searched_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"not the two objectives .*Pass a SearchSpace"):
        study_space(optuna.create_study())
    study = optuna.create_study(directions=["minimize", "minimize"])
    with pytest.raises(ValueError, match=r"no trial .* asked for a parameter.*Pass a SearchSpace"):
        study_space(study)
    study.sampler = CarbsSampler([*PARAMS, Param("rate", LogSpace(max=1), 0.1)])
    study.tell(study.ask(), [1.0, 1.0])
    with pytest.raises(ValueError, match=r"'rate', 'width'.*shares.*'mix.a', 'mix.b'"):
        study_space(study)


def test_a_study_of_any_sampler_says_by_its_trials_what_it_searched() -> None:
    def objective(trial: optuna.Trial) -> tuple[float, float]:
        width = trial.suggest_int("width", 16, 512, log=True)
        if trial.suggest_categorical("optimizer", ["adam", "sgd"]) == "sgd":
            trial.suggest_float("momentum", 0, 1)
        return width**-0.3, 0.1 * width

    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=sampler)
    study.optimize(objective, n_trials=12)
    frame = trials_frame(study)
    assert len(frame) == 12
    assert frame["momentum"].isna().equals(frame["optimizer"] == "adam")
    curves = hyperparameter_curves(study)
    assert {curve.name for curve in curves} == {"width", "momentum"}


def frame(n: int = 40) -> pd.DataFrame:
    """Runs of a user's own: whole widths, learning rates as text, and what tells runs apart."""
    rng = np.random.default_rng(0)
    width = (8 * 2 ** rng.integers(2, 7, n)).astype(int)
    tokens = 10 ** rng.uniform(6, 8, n)
    rate = 10 ** rng.uniform(-4, -2, n)
    loss = 2 + 30 * width**-0.9 + 60 * tokens**-0.3 + 0.05 * np.log10(rate / 1e-3) ** 2
    return pd.DataFrame(
        {
            "run_id": [f"r{i}" for i in range(n)],
            "seed": rng.integers(0, 1000, n),
            "width": width,
            "tokens": tokens,
            "learning_rate": [f"{r:.2e}" for r in rate],
            "loss": loss,
            "cost": width * tokens / 1e7,
        }
    )


def test_a_frame_keeps_whole_numbers_reads_numbers_in_words_and_leaves_labels_out() -> None:
    space, known = frame_records(frame())
    assert [param.name for param in space.params] == ["width", "tokens", "learning_rate"]
    width, tokens, rate = (param.space for param in space.params)
    assert isinstance(width, LogSpace) and width.is_integer
    assert isinstance(tokens, LogSpace) and not tokens.is_integer
    assert isinstance(rate, LogSpace)
    front = fit_front(space, known.observations)
    planned = plan(front, 30 * front.dearest)
    assert isinstance(planned.params["width"], int)
    assert any(curve.name == "learning_rate" for curve in hyperparameter_curves(front))


def test_columns_with_dots_are_a_mixture_where_they_sum_to_one() -> None:
    runs = frame().rename(columns={"width": "model.width", "tokens": "data.tokens"})
    share = np.linspace(0.1, 0.9, len(runs)).round(2)
    runs = runs.assign(**{"data.mix.a": share, "data.mix.b": 1 - share, "model.dropout": share})
    spaces = {param.name: param.space for param in frame_records(runs)[0].params}
    assert list(spaces)[:3] == ["model.width", "data.tokens", "learning_rate"]
    assert isinstance(spaces["model.width"], LogSpace)
    assert isinstance(spaces["model.dropout"], LogitSpace)
    assert spaces["data.mix"] == MixtureSpace(["a", "b"])
    assert len(spaces) == 5


def test_a_column_of_numbers_and_words_is_refused_by_name() -> None:
    runs = frame()
    runs["name"] = [*"123", *["wide"] * (len(runs) - 3)]  # a label may be anything
    runs.loc[3, "learning_rate"] = "unknown"
    with pytest.raises(ValueError, match=r"'learning_rate' holds numbers and words.*unknown"):
        plan(runs, 1e4)


def test_numbers_with_units_are_read_and_words_that_are_no_choices_are_refused_by_name() -> None:
    runs = frame().assign(size=[f"{i + 1.5}M" for i in range(40)])
    spaces = {param.name: param.space for param in frame_records(runs)[0].params}
    assert isinstance(spaces["size"], LogSpace)
    assert frame_records(runs)[1].observations[3].params["size"] == 4.5e6
    runs["size"] = [f"model {i}" for i in range(40)]
    with pytest.raises(ValueError, match="column 'size' holds 40 different words in 40 rows"):
        frame_records(runs)
    runs["size"] = ["small", "large"] * 20
    assert ChoiceSpace(["large", "small"]) in [p.space for p in frame_records(runs)[0].params]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda runs: runs.drop(columns="cost"), r"lacks the columns \['cost'\]"),
        (lambda runs: runs[:0], "the frame has no rows"),
        (lambda runs: runs.assign(cost=math.nan), "no row of the frame has a cost"),
        (lambda runs: runs.assign(cost="dear"), "column 'cost' holds 'dear': expected numbers"),
        (lambda runs: runs.assign(state="finished"), r"\['finished'\], and no run .* 'complete'"),
        (lambda runs: runs.to_dict(), "a dict is no runs: expected .* a frame with one row a run"),
    ],
)
def test_a_frame_that_is_none_of_runs_is_told_what_it_lacks(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(change(frame()), 1e4)


def test_a_search_is_analysed_in_its_own_space_or_by_its_frame() -> None:
    params = [
        Param("width", LogSpace(min=16, is_integer=True, rounding_factor=16), 64),
        Param("optimizer", ChoiceSpace(["adam", "sgd"]), "adam"),
        Param("momentum", LogitSpace(), 0.9, when={"optimizer": "sgd"}),
        Param("mix", MixtureSpace(["a", "b"]), {"a": 0.5, "b": 0.5}, when={"optimizer": "sgd"}),
    ]

    def train(params: dict[str, Any]) -> tuple[float, float]:
        better = 0.1 if params["optimizer"] == "sgd" else 0.0
        return 1 + params["width"] ** -0.4 - better, params["width"] / 16

    result = minimize(train, params, n_trials=20, max_cost=100)
    planned = plan(result, 300)
    assert planned == plan(result.optimizer, 300)
    assert planned.params["width"] % 16 == 0
    space, known = frame_records(result.to_frame())
    assert {param.name: dict(param.when) for param in space.params} == {
        "width": {},
        "optimizer": {},
        "momentum": {"optimizer": ("sgd",)},
        "mix": {"optimizer": ("sgd",)},
    }
    assert {name for run in known.observations for name in run.params} == set(planned.params)
    for data in (result, result.to_frame()):
        names = {curve.name for curve in hyperparameter_curves(data)}
        assert {"width", "momentum"} <= names <= {"width", "momentum", "mix.a", "mix.b"}


def test_a_budget_in_flops_beside_costs_in_another_unit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1e\+21 FLOPs.*another unit.*'flops'"):
        plan(frame(), flops=1e21)


def test_a_frame_of_one_row_does_not_show_what_was_searched() -> None:
    frame = pd.DataFrame([{"lr": 0.1, "width": 8, "loss": 2.0, "cost": 1.0}])
    with pytest.raises(ValueError, match=r"1 row, .*columns \['lr', 'width'\] varies"):
        frame_records(frame)
