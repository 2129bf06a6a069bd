"""The sweep file: what it gives, and what each mistake in it is told."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from carbs import LogitSpace, LogSpace, MixtureSpace, Param
from carbs.launchers.cluster.options import slurm_options
from carbs.launchers.controller.config import (
    CheckConfig,
    EarlyStoppingConfig,
    SweepConfig,
    load_sweep,
)
from carbs.launchers.errors import SweepFileError
from carbs.launchers.job.runner import load_function
from carbs.launchers.lm.train import train

WriteSweep = Callable[..., Path]


def test_a_sweep_file_is_read(write_sweep: WriteSweep) -> None:
    path = write_sweep(
        parameters={
            "size": {
                "space": "log",
                "min": 16,
                "is_integer": True,
                "rounding_factor": 16,
                "search_center": 64,
            },
            "mix": {
                "space": "mixture",
                "components": ["code", "prose"],
                "search_center": {"code": 0.5, "prose": 0.5},
            },
        },
        settings={"anything": [1, 2]},
        max_cost=10,
        budget=100,
        direction="maximize",
        check={"cost_factor": 4},
        early_stopping={"miss_share": 0.1},
    )
    config = load_sweep(path)
    assert config.parameters == [
        Param("size", LogSpace(min=16, is_integer=True, rounding_factor=16), 64),
        Param("mix", MixtureSpace(["code", "prose"]), {"code": 0.5, "prose": 0.5}),
    ]
    assert config.settings == {"anything": [1, 2]}
    assert (config.max_cost, config.budget, config.direction) == (10, 100, "maximize")
    assert config.check == CheckConfig(cost_factor=4)
    assert config.early_stopping == EarlyStoppingConfig(miss_share=0.1, min_progress=0.2)
    assert (config.executor, config.seed, config.storage) == ("local", 0, None)


OPTIMIZER = {"space": "choice", "choices": ["adamw", "sgd"], "search_center": "adamw"}
MOMENTUM = {"space": "logit", "search_center": 0.9, "when": {"optimizer": "sgd"}}


def test_conditions_and_constraints_are_read(write_sweep: WriteSweep) -> None:
    path = write_sweep(
        parameters={"optimizer": OPTIMIZER, "momentum": MOMENTUM},
        constraints=["momentum < 0.99"],
    )
    config = load_sweep(path)
    assert config.parameters[1] == Param("momentum", LogitSpace(), 0.9, when={"optimizer": ["sgd"]})
    assert config.constraints == ["momentum < 0.99"]
    assert SweepConfig.model_validate_json(config.model_dump_json()) == config


def test_the_reference_jobs_former_name_still_means_it(write_sweep: WriteSweep) -> None:
    config = load_sweep(write_sweep(function="launchers.lm.train:train"))
    assert config.function == "carbs.launchers.lm.train:train"
    assert load_function(config.function) is train


def test_the_demo_is_a_sweep_file() -> None:
    config = load_sweep(Path(str(files("carbs.launchers") / "demo.yaml")))
    assert [param.name for param in config.parameters][-1] == "mix"
    assert config.budget is not None
    assert config.check is not None


def test_overrides_replace_and_none_leaves(write_sweep: WriteSweep) -> None:
    path = write_sweep(seed=1, max_trials=9)
    config = load_sweep(path, seed=7, max_trials=None, executor="debug")
    assert (config.seed, config.max_trials, config.executor) == (7, 9, "debug")
    with pytest.raises(SweepFileError, match="executor"):
        load_sweep(path, executor="kubernetes")


X = {"space": "log", "search_center": 1.0}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_trails": 3}, ["unknown key 'max_trails'", "did you mean 'max_trials'"]),
        ({"zzz": 3}, ["unknown key 'zzz'", "known keys: name, function"]),
        ({"parameters": {"rate": {**X, "centre": 1}}}, ["unknown key 'parameters.rate.centre'"]),
        (
            {"parameters": {"rate": {**X, "space": "logg"}}},
            ["parameters.rate", "unknown space 'logg'", "'linear', 'log', 'logit'"],
        ),
        ({"parameters": {"rate": {"space": "log"}}}, ["'rate'", "search_center", "good, cheap"]),
        ({"parameters": {"rate": {"search_center": 1}}}, ["'rate'", "needs a space", "mixture"]),
        ({"parameters": {"rate": 3}}, ["'rate'", "needs a space"]),
        ({"parameters": {"rate": {**X, "space": "logg"}}}, ["rate", "logg", "'mixture'"]),
        ({"parameters": {"rate": {**X, "min": 5}}}, ["'rate'", "1 lies outside [5, inf]"]),
        ({"parameters": {"rate": {**X, "scale": "wide"}}}, ["rate", "scale", "number"]),
        ({"parameters": {"rate": {**X, "search_center": "big"}}}, ["'rate'", "'big'"]),
        (
            {
                "parameters": {
                    "mix": {
                        "space": "mixture",
                        "components": ["a", "b"],
                        "search_center": {"a": 0.5, "b": 0.4},
                    }
                }
            },
            ["'mix'", "sum to 0.9", "expected 1"],
        ),
        ({"parameters": {}}, ["parameters", "at least 1"]),
        (
            {"parameters": {"momentum": MOMENTUM}},
            ["'momentum'", "'when' names 'optimizer'", "none of the parameters"],
        ),
        (
            {"parameters": {"optimizer": OPTIMIZER, "m": {**MOMENTUM, "when": {"optimizer": "x"}}}},
            ["'m'", "'x' is none of ['adamw', 'sgd']"],
        ),
        (
            {"parameters": {"optimizer": OPTIMIZER, "m": {**MOMENTUM, "when": "sgd"}}},
            ["parameters.m.when", "dictionary"],
        ),
        ({"constraints": ["y < 3"]}, ["'y < 3'", "names ['y']", "['x']"]),
        ({"constraints": ["x <"]}, ["'x <'", "is no expression"]),
        ({"constraints": ["x > 1"]}, ["the search centre", "violates the constraint 'x > 1'"]),
        ({"constraints": "x < 3"}, ["constraints", "list"]),
        ({"warm_start": [{"study": "a"}]}, ["warm_start.0", "both storage and study"]),
        ({"warm_start": [{"folder": "a", "study": "a"}]}, ["warm_start.0", "either the folder"]),
        ({"warm_start": [{"foldr": "a"}]}, ["unknown key 'warm_start.0.foldr'"]),
        (
            {"warm_start": [{"folder": "a"}, {"folder": "b", "defaults": {"y": 3}}]},
            ["warm_start.1", "defaults name ['y']", "['x']"],
        ),
        (
            {"warm_start": [{"folder": "a", "defaults": {"x": -3}}]},
            ["warm_start.0", "parameter 'x'", "-3"],
        ),
        ({"budget": 5, "max_cost": 10}, ["budget 5", "max_cost 10", "raise budget or lower"]),
        ({"budget": -5}, ["budget", "greater than 0"]),
        ({"max_trials": "many"}, ["max_trials", "integer"]),
        ({"max_in_flight": 0}, ["max_in_flight", "greater than or equal to 1"]),
        ({"direction": "up"}, ["direction", "'minimize' or 'maximize'"]),
        ({"executor": "pbs"}, ["executor", "'local', 'slurm' or 'debug'"]),
        ({"function": "training"}, ["function", "module:function"]),
        ({"name": None}, ["missing key 'name'"]),
        ({"check": {"cost_factr": 3}}, ["unknown key", "check.cost_factr"]),
    ],
)
def test_a_mistake_is_named(write_sweep: WriteSweep, changes: Any, said: list[str]) -> None:
    path = write_sweep(**changes)
    with pytest.raises(SweepFileError) as refusal:
        load_sweep(path)
    message = str(refusal.value)
    assert str(path) in message
    for words in said:
        assert words in message
    # In the user's words: no class of ours, no pydantic, no web address.
    for foreign in ("pydantic", "https://", "SweepConfig", "Traceback"):
        assert foreign not in message


def test_several_mistakes_are_named_at_once(write_sweep: WriteSweep) -> None:
    with pytest.raises(SweepFileError) as refusal:
        load_sweep(write_sweep(max_trials=0, budgett=3))
    assert "max_trials" in str(refusal.value)
    assert "did you mean 'budget'" in str(refusal.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SweepFileError, match=r"cannot read .*absent\.yaml: No such file"):
        load_sweep(tmp_path / "absent.yaml")
    with pytest.raises(SweepFileError, match="cannot read"):
        load_sweep(tmp_path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"name: [unclosed", "is no YAML file"),
        (b"\xff\xfe\xff", "is no YAML file"),
        (b"\x00", "is no YAML file"),
        (b"", "must hold a mapping"),
        (b"- a\n- b\n", "must hold a mapping"),
        (b"parameters:\n  - 3\n", "parameters"),
        (b"parameters: [x, y]\nname: a\n", "parameters"),
        (b"1: 2\n", "1"),
    ],
)
def test_what_is_no_sweep_file(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_bytes(content)
    with pytest.raises(SweepFileError) as refusal:
        load_sweep(path)
    assert said in str(refusal.value)
    assert "sweep.yaml" in str(refusal.value)


def test_a_sweep_file_can_say_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(SweepFileError, match="is no YAML file"):
        load_sweep(path)


def test_tiers_by_parameter_and_predicted_cost(write_sweep: Callable[..., Path]) -> None:
    config = load_sweep(
        write_sweep(
            executor_options={"partition": "gpu", "timeout_min": 60},
            tiers={
                "wide": {"when": "x > 10", "options": {"slurm_partition": "big", "nodes": 2}},
                "dear": {"min_cost": 100, "options": {"timeout_min": 600}},
            },
        )
    )
    assert config.tier({"x": 11.0}, 500) == "wide"
    assert config.tier({"x": 1.0}, 500) == "dear"
    assert config.tier({"x": 1.0}, 99) is None
    assert config.tier({"x": 1.0}, None) is None
    native = slurm_options(config.options("wide"))
    assert (native["partition"], native["nodes"], native["time"]) == ("big", 2, 60)
    assert slurm_options(config.options("dear"))["time"] == 600
    assert slurm_options(config.options(None))["partition"] == "gpu"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"executor_options": {"partiton": "gpu"}}, "did you mean 'partition'"),
        ({"executor_options": {"nodes": "two"}}, "expected int"),
        ({"tiers": {"a": {"options": {"gpu": 1}}}}, "unknown option 'gpu' in tiers.a.options"),
        ({"tiers": {"a": {"when": "z > 1"}}}, "tiers.a.when"),
        ({"tiers": {"a": {"cost": 1}}}, "unknown key 'tiers.a.cost'"),
        ({"outcomes": [{"pattern": "(", "verdict": "bad_machine", "reason": "r"}]}, "expression"),
        ({"outcomes": [{"pattern": "x", "verdict": "bad", "reason": "r"}]}, "bad_configuration"),
        ({"storage": "a", "storage_file": "b"}, "storage or storage_file"),
    ],
)
def test_what_slurm_is_told_is_checked(
    write_sweep: Callable[..., Path], keys: dict[str, Any], said: str
) -> None:
    with pytest.raises(SweepFileError) as refusal:
        load_sweep(write_sweep(**keys))
    assert said in str(refusal.value)
