"""``carbs init``, ``validate`` and ``schema``: from nothing to a sweep that runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from carbs.launchers.controller.schema import sweep_schema

WriteSweep = Callable[..., Path]
WriteModule = Callable[[str], str]
RunCli = Callable[..., tuple[int, str, str]]

WRONG = """\
name: wrong
function: train
parameters:
  lr: {space: log, search_center: 0.1, max: 0.5}
max_trails: 3
max_cost: 5
budget: 3
constraints:
  - lr < 1
  - wdth > 3
executor_options: {timeot_min: 3}
tiers:
  small: {when: "lr < 2"}
  large: {when: "lrr < 2"}
early_stopping: {miss_share: 3}
storage: a
storage_file: b
"""
WRONG_PARAMETERS = """\
name: wrong
function: train:train
parameters:
  lr: {space: log, search_center: 0.1, max: 0.01}
  width: {space: logg, search_center: 3}
  depth: {search_center: 3}
  heads: {space: log}
constraints: ["width % heads == 0"]
max_trials: 0
"""
WRONG_REFERENCE = """\
name: wrong
function: train:train
parameters:
  lr: {space: log, search_center: 0.1}
  momentum: {space: logit, search_center: 0.9, when: {optimiser: sgd}}
"""


def test_what_init_writes_runs_as_it_is(
    run_cli: RunCli, carbs: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_cli("init")
    assert code == 0
    assert "carbs sweep sweep.yaml" in out
    code, out, _ = run_cli("validate", "sweep.yaml")
    assert (code, out.startswith("sweep.yaml is fine: 30 trials over learning_rate, width")) == (
        0,
        True,
    )
    code, out, err = carbs("sweep", "sweep.yaml", "--max-trials", "3").wait()
    assert code == 0, err
    assert "3 trials done, 0 failed" in out


def test_init_writes_nothing_over_what_is_there(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_training.py").write_text("mine")
    code, _, err = run_cli("init")
    assert code == 2
    assert "my_training.py is there already" in err
    assert (tmp_path / "my_training.py").read_text() == "mine"
    assert not (tmp_path / "sweep.yaml").exists()


def test_init_for_a_function_of_ones_own(run_cli: RunCli, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    assert run_cli("init", file, "--function", "pkg.module:fit")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert yaml.safe_load(file.read_text())["function"] == "pkg.module:fit"


def test_files_of_one_folder_are_sweeps_of_their_own(run_cli: RunCli, tmp_path: Path) -> None:
    names = {}
    (tmp_path / "lm").mkdir()
    for name in ("sweep", "wide", "long run"):
        file = tmp_path / "lm" / f"{name}.yaml"
        assert run_cli("init", file, "--function", "pkg.module:fit")[0] == 0
        names[name] = yaml.safe_load(file.read_text())["name"]
    assert names == {"sweep": "lm", "wide": "wide", "long run": "long-run"}


def test_init_for_a_script_takes_the_parameters_from_its_command(
    run_cli: RunCli, tmp_path: Path
) -> None:
    file = tmp_path / "sweep.yaml"
    command = "python train.py --lr {lr} --note 'a: b' --dropout {dropout} --odd {odd} --again {lr}"
    assert run_cli("init", file, "--command", command)[0] == 0
    content = yaml.safe_load(file.read_text())
    assert content["command"] == command
    assert "function" not in content
    spaces = {name: fields["space"] for name, fields in content["parameters"].items()}
    assert spaces == {"lr": "log", "dropout": "logit", "odd": "log"}


def test_what_init_writes_for_a_script_is_valid(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    for command in ("python train.py --lr {lr} --width {width}", "python train.py {overrides}"):
        assert run_cli("init", "sweep.yaml", "--command", command)[0] == 0
        code, out, _ = run_cli("validate", "sweep.yaml")
        assert code == 0, out
        (tmp_path / "sweep.yaml").unlink()


def test_what_is_wrong_with_a_command_is_no_missing_function(
    run_cli: RunCli, tmp_path: Path
) -> None:
    file = tmp_path / "sweep.yaml"
    rest = "name: x\nparameters: {lr: {space: log, search_center: 1.0}}\nmax_trails: 3\n"
    for keys, lines in (
        ("command: python train.py {lrr}\n", [1, 4]),
        ("", [None, 3]),
        ("function: a:b\ncommand: python train.py {lr}\n", [2, 5]),
        ("settings: {x: 1}\ncommand: python train.py {lr}\n", [1, 5]),
    ):
        file.write_text(keys + rest)
        said = json.loads(run_cli("validate", file, "--json")[1])["problems"]
        assert [problem["line"] for problem in said] == lines, said


def test_every_error_is_told_at_once_with_its_line(run_cli: RunCli, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(WRONG)
    code, out, _ = run_cli("validate", file)
    assert code == 1
    lines = out.splitlines()
    assert lines[0] == f"error: {file}:"
    for line, (number, words) in zip(
        lines[1:],
        [
            (2, "'train' is not of the form module:function"),
            (5, "did you mean 'max_trials'"),
            (7, "budget 3 is smaller than one run may cost"),
            (10, "'wdth'"),
            (11, "did you mean 'timeout_min'"),
            (14, "tiers.large.when: constraint 'lrr < 2'"),
            (15, "early_stopping.miss_share"),
            (17, "give storage or storage_file"),
        ],
        strict=True,
    ):
        assert line.startswith(f"  line {number}: ")
        assert words in line
    # The sweep itself says the same.
    assert lines[3] in run_cli("sweep", file)[2]


def test_every_parameter_at_fault_is_told(run_cli: RunCli, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(WRONG_PARAMETERS)
    code, out, _ = run_cli("validate", file, "--json")
    assert code == 1
    said = json.loads(out)
    assert said["is_valid"] is False
    assert [problem["line"] for problem in said["problems"]] == [4, 5, 6, 7, 9]
    assert said["problems"][0]["where"] == "parameters.lr"


def test_what_refers_to_others_is_found(run_cli: RunCli, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(WRONG_REFERENCE)
    said = json.loads(run_cli("validate", file, "--json")[1])
    assert [(p["line"], p["where"]) for p in said["problems"]] == [(5, "parameters.momentum")]


def test_validate_looks_for_the_function_and_writes_nothing(
    run_cli: RunCli, write_sweep: WriteSweep, write_module: WriteModule, tmp_path: Path
) -> None:
    file = write_sweep(function="no_such_module:train")
    code, out, _ = run_cli("validate", file)
    assert code == 1
    assert "there is no module 'no_such_module'" in out
    file = write_sweep(function=f"{write_module('def train(params, job): ...')}:train")
    code, out, _ = run_cli("validate", file, "--json")
    assert (code, json.loads(out)["problems"]) == (0, [])
    assert not (tmp_path / "sweeps").exists()


def test_a_number_with_an_exponent_is_a_number(
    run_cli: RunCli, write_module: WriteModule, write_sweep: WriteSweep
) -> None:
    module = write_module("def train(params, job): ...")
    file = write_sweep(
        function=f"{module}:train",
        parameters={
            "lr": {"space": "log", "min": "MIN", "search_center": "CENTER"},
            "eps": {"space": "choice", "choices": ["A", "B"], "search_center": "A"},
        },
    )
    text = file.read_text().replace("MIN", "1e-5").replace("CENTER", "3e-4")
    file.write_text(text.replace(" A", " 1e-8").replace(" B", " 1e-6"))
    code, out, _ = run_cli("validate", file)
    assert code == 0, out


def test_the_schema_takes_what_the_sweep_takes(run_cli: RunCli, tmp_path: Path) -> None:
    code, out, _ = run_cli("schema")
    assert code == 0
    schema = json.loads(out)
    assert schema == sweep_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    run_cli("init", tmp_path / "sweep.yaml")
    for text in ((files("carbs.launchers") / "demo.yaml").read_text(), *written(tmp_path)):
        assert list(validator.iter_errors(yaml.safe_load(text))) == []
    everything: dict[str, Any] = {
        "name": "all",
        "function": "a:b",
        "parameters": {
            "mix": {
                "space": "mixture",
                "components": ["a", "b"],
                "search_center": {"a": 0.5, "b": 0.5},
                "max": {"a": 0.9},
            },
            "optimizer": {"space": "choice", "choices": ["adam", "sgd"], "search_center": "adam"},
            "momentum": {"space": "logit", "search_center": 0.9, "when": {"optimizer": "sgd"}},
            "width": {"space": "log", "search_center": 8, "is_integer": True, "role": "width"},
            "depth": {"space": "log", "fixed": 2, "was": 1},
        },
        "warm_start": [{"folder": "old", "defaults": {"width": 3}}],
        "tiers": {"large": {"when": "width > 8", "options": {"nodes": 2}}},
        "outcomes": [{"pattern": "licence", "verdict": "bad_machine", "reason": "no licence"}],
        "check": {"cost_factor": 8},
        "early_stopping": {"miss_share": 0.1},
    }
    assert list(validator.iter_errors(everything)) == []
    for key, wrong in (
        ("command", "python train.py {overrides}"),
        ("max_trails", 3),
        ("max_trials", 0),
        ("executor", "pbs"),
        ("check", {"cost": 3}),
        ("parameters", {"x": {"space": "log"}}),
        ("parameters", {"x": {"space": "logg", "search_center": 1}}),
        ("parameters", {"x": {"space": "log", "search_center": 1, "choices": [1, 2]}}),
    ):
        assert not validator.is_valid(everything | {key: wrong}), key
    described = schema["properties"]["max_in_flight"]["description"]
    assert described == "Jobs at a time."


def written(folder: Path) -> list[str]:
    return [path.read_text() for path in folder.glob("*.yaml")]
