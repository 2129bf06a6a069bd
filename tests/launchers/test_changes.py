"""Sweep files that change while their sweep goes on in the same folder."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from carbs.analysis import trials_frame
from carbs.analysis.front.trials import study_records
from carbs.launchers.cluster.executors import DebugExecutor, Submission
from carbs.launchers.controller.config import load_sweep
from carbs.launchers.controller.control_loop import Controller
from carbs.launchers.controller.sweep import Status, Sweep
from carbs.launchers.errors import FolderError, SweepFileError, SweepStoppedError

WriteSweep = Callable[..., Path]

X = {"space": "log", "scale": 0.5, "min": 0.5, "max": 2.0, "search_center": 1.0}
MIX = {
    "space": "mixture",
    "components": ["code", "prose"],
    "search_center": {"code": 0.5, "prose": 0.5},
}
TRAINING = """
from pathlib import Path
def train(params, job):
    if (Path(__file__).parent / "bug").exists():
        raise RuntimeError("a bug")
    with open(Path(__file__).parent / "seen.txt", "a") as seen:
        seen.write(repr(sorted(params)) + "\\n")
    x = params["x"] * params.get("y", 0.25)
    return {"output": 1 + x**-0.5, "cost": 1 + x}
"""


@pytest.fixture
def go_on(
    write_module: Callable[[str], str], write_sweep: WriteSweep, tmp_path: Path
) -> Callable[..., tuple[Status, str]]:
    """Writes the sweep file with these keys and goes on; what the sweep holds and has said."""
    function = f"{write_module(TRAINING)}:train"

    def go_on(parameters: dict[str, Any], **keys: Any) -> tuple[Status, str]:
        usual = {"executor": "debug", "max_trials": 4, "max_in_flight": 1, "function": function}
        file = write_sweep(parameters=parameters, **{**usual, **keys})
        said: list[str] = []
        sweep = Sweep(load_sweep(file), tmp_path / "s", (str(tmp_path),), notify=said.append)
        with Controller(sweep) as controller:
            return controller.run(), "\n".join(said)

    return go_on


GoOn = Callable[..., tuple[Status, str]]


def values(status: Status, name: str) -> list[Any]:
    return [observation.params.get(name) for observation in status.records.observations]


def test_bounds_are_widened_and_narrowed(go_on: GoOn) -> None:
    first, said = go_on({"x": X})
    assert said == ""
    wide, said = go_on({"x": {**X, "max": 100.0}}, max_trials=8, budget=1e6)
    assert "x: max 2.0 -> 100.0" in said
    assert wide.records.observations[:4] == first.records.observations
    assert max(values(wide, "x")[4:]) > 2
    narrow, _ = go_on({"x": {**X, "max": 1.5}}, max_trials=11)
    assert len(narrow.records.observations) == 11
    assert max(values(narrow, "x")[:8]) > 2  # what lies outside is data all the same
    assert max(values(narrow, "x")[8:]) <= 1.5


def test_a_parameter_is_added_with_what_earlier_runs_used(go_on: GoOn, tmp_path: Path) -> None:
    go_on({"x": X})
    y = {**X, "min": 0.1, "search_center": 1.0}
    with pytest.raises(FolderError, match=r"y is new: say was: VALUE"):
        go_on({"x": X, "y": y})
    for added in ({"was": 0.25}, {}):  # once said, it is known
        status, _ = go_on({"x": X, "y": {**y, **added}}, max_trials=6)
        assert values(status, "y")[:4] == [0.25] * 4
        assert None not in values(status, "y")
    # The analysis reads the study in the same way, and what Optuna has stored is as it was.
    study = Sweep.open(tmp_path / "s").study
    assert [o.params["y"] for o in study_records(study)[1].observations] == values(status, "y")
    assert list(trials_frame(study)["y"]) == values(status, "y")
    assert "y" not in study.trials[0].params


@pytest.mark.parametrize(
    ("name", "param", "value"),
    [
        ("x", X, 1.25),
        ("n", {**X, "min": 1, "max": 64, "is_integer": True, "search_center": 4}, 8),
        ("kind", {"space": "choice", "choices": ["a", "b"], "search_center": "a"}, "b"),
        ("mix", MIX, {"code": 0.25, "prose": 0.75}),
    ],
)
def test_a_parameter_is_fixed_and_earlier_runs_keep_their_values(
    go_on: GoOn, name: str, param: dict[str, Any], value: Any
) -> None:
    others = {"z": X, "x": X}
    before, _ = go_on({**others, name: param}, max_trials=5)
    after, said = go_on({**others, name: {**param, "fixed": value}}, max_trials=9)
    assert f"{name}: " in said
    assert values(after, name)[:5] == values(before, name)
    for found in values(after, name)[5:]:
        assert found == pytest.approx(value, abs=1e-8) if name != "kind" else found == value


def test_a_component_comes_and_goes(go_on: GoOn) -> None:
    go_on({"x": X, "mix": MIX})
    three = {
        "space": "mixture",
        "components": ["code", "prose", "logs"],
        "search_center": {"code": 0.4, "prose": 0.4, "logs": 0.2},
    }
    status, _ = go_on({"x": X, "mix": three}, max_trials=7)
    assert [mix["logs"] for mix in values(status, "mix")[:4]] == [0] * 4
    assert any(mix["logs"] > 0 for mix in values(status, "mix")[4:])
    n_with = sum(mix["logs"] > 0 for mix in values(status, "mix"))
    status, said = go_on({"x": X, "mix": MIX}, max_trials=5)
    assert f"{n_with} earlier runs cannot be read in the new space: they gave weight to" in said
    assert all(sum(mix.values()) == pytest.approx(1) for mix in values(status, "mix"))


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"y": X}, {}, r"y is gone: .*fixed: VALUE"),
        ({}, {"x": {**X, "space": "linear"}}, "x: its scale or kind cannot change"),
        (
            {"k": {"space": "choice", "choices": ["a", "b"], "search_center": "a"}},
            {"k": {"space": "choice", "choices": ["a", "c"], "search_center": "a"}},
            "k: choices cannot change",
        ),
    ],
)
def test_what_the_study_cannot_hold_both_ways_is_said(
    go_on: GoOn, before: dict[str, Any], after: dict[str, Any], said: str
) -> None:
    go_on({"x": X, **before}, max_trials=1)
    with pytest.raises(FolderError, match=rf"other parameters(.|\n)*{said}(.|\n)*warm_start"):
        go_on({"x": X, **after})
    status, _ = go_on({"x": X, **before}, max_trials=2)  # and nothing is lost
    assert len(status.records.observations) == 2


def test_the_direction_cannot_turn(go_on: GoOn) -> None:
    go_on({"x": X}, max_trials=1)
    with pytest.raises(FolderError, match="is to minimize its output"):
        go_on({"x": X}, direction="maximize")


def test_budget_trials_and_options_are_those_of_the_file(go_on: GoOn) -> None:
    status, _ = go_on({"x": X}, max_trials=3)
    assert len(status.records.observations) == 3
    budget = status.spent + 2.5
    status, said = go_on({"x": X}, max_trials=30, budget=budget, executor_options={"mem_gb": 1})
    assert said == ""
    assert 3 < len(status.records.observations) < 8
    status, _ = go_on({"x": X}, max_trials=2)  # fewer than there are
    assert status.spent <= budget


def test_options_and_tiers_are_those_of_the_file(
    go_on: GoOn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job is submitted with what the file says then; what was run before is not run again."""
    used: list[dict[str, Any]] = []
    submit = DebugExecutor.submit

    def note(self: DebugExecutor, submission: Submission) -> list[str]:
        used.extend(submission.options for _ in submission.folders)
        return submit(self, submission)

    monkeypatch.setattr(DebugExecutor, "submit", note)
    before, _ = go_on({"x": X}, max_trials=2, executor_options={"mem_gb": 1})
    large = {"large": {"when": "x > 0", "options": {"mem_gb": 3, "timeout_min": 5}}}
    status, said = go_on({"x": X}, max_trials=4, executor_options={"mem_gb": 2}, tiers=large)
    assert said == ""
    assert status.records.observations[:2] == before.records.observations
    status, _ = go_on({"x": X}, max_trials=5, executor_options={"mem_gb": 4})
    assert [options.get("mem_gb") for options in used] == [1, 1, 3, 3, 4]
    assert [options.get("timeout_min") for options in used] == [None, None, 5, 5, None]
    tiers = [trial.user_attrs["job"]["tier"] for trial in Sweep.open(tmp_path / "s").study.trials]
    assert tiers == [None, None, "large", "large", None]
    assert len(status.records.observations) == 5


def test_a_mended_bug(go_on: GoOn, tmp_path: Path, run_cli: Any, write_sweep: WriteSweep) -> None:
    """Five failures have stopped the sweep; the same configurations are tried again."""
    (tmp_path / "bug").touch()
    with pytest.raises(SweepStoppedError, match="--retry-failed"):
        go_on({"x": X}, max_trials=6)
    (tmp_path / "bug").unlink()
    failed = [t.params["x"] for t in Sweep.open(tmp_path / "s").study.trials]
    assert len(failed) == 5
    command = ("sweep", tmp_path / "sweep.yaml", "--folder", tmp_path / "s", "--retry-failed")
    code, out, err = run_cli(*command)
    assert code == 0, err
    assert "5 failed trials are tried again" in out
    assert "6 trials done, 0 failed" in out
    status = Sweep.open(tmp_path / "s").status()
    assert set(failed) <= set(values(status, "x"))
    code, out, _ = run_cli(*command)
    assert "0 failed trials are tried again" in out


def test_what_is_run_otherwise_is_told(go_on: GoOn, write_module: Callable[[str], str]) -> None:
    go_on({"x": X}, max_trials=1, settings={"rows": 3, "kind": "a"})
    other = f"{write_module(TRAINING)}:train"
    status, said = go_on(
        {"x": X},
        max_trials=2,
        function=other,
        settings={"rows": 4, "kind": "a"},
        output_unit="nats",
    )
    assert re.search(rf"^  function: training_\w+:train -> {other}$", said, re.MULTILINE)
    assert "  settings.rows: 3 -> 4" in said
    assert "  output_unit: none -> nats" in said
    assert "kind" not in said
    assert len(status.records.observations) == 2
    keys = {"function": None, "command": "echo {x} {seed}", "settings": None}
    with pytest.raises(FolderError, match="cost in s, and the sweep file says cost_unit: FLOPs"):
        go_on({"x": X}, max_trials=2, cost_unit="FLOPs", **keys)
    _, said = go_on({"x": X}, max_trials=2, cost_unit="seconds", **keys)
    assert f"  function: {other} -> none" in said
    assert "  command: none -> echo {x} {seed}" in said
    assert go_on({"x": X}, max_trials=2, cost_unit="s", **keys)[1] == "", "it is told once"


def test_a_folder_holds_one_study(go_on: GoOn, tmp_path: Path) -> None:
    go_on({"x": X}, max_trials=2)
    before = contents(tmp_path / "s")
    with pytest.raises(FolderError, match=r"holds the study 'small'.* name: small"):
        go_on({"x": X}, name="other")
    assert contents(tmp_path / "s") == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("is_live", [False, True])
def test_a_file_that_is_only_tried_changes_nothing(
    go_on: GoOn, tmp_path: Path, run_cli: Any, write_sweep: WriteSweep, is_live: bool
) -> None:
    """By a dry run, or beside a controller that is at work."""
    go_on({"x": X})
    folder = tmp_path / "s"
    file = write_sweep(
        function="other:train",
        parameters={"x": {**X, "max": 3.0}, "y": {**X, "was": 0.25}},
        executor="debug",
        max_trials=9,
    )
    (tmp_path / "other.py").write_text("def train(params, job): ...\n")
    command = ("sweep", file, "--folder", folder)
    if is_live:
        with Controller(Sweep.open(folder)):
            before = contents(folder)
            code, _, err = run_cli(*command)
            assert (code, contents(folder)) == (2, before)
        assert "another controller is running" in err
    else:
        before = contents(folder)
        code, out, err = run_cli(*command, "--dry-run")
        assert (code, contents(folder)) == (0, before), err
        assert "x: max 2.0 -> 3.0" in out and "y is new" in out
        assert re.search(r"^trial 4: x=\S+ y=\S+$", out, re.MULTILINE)
        assert "nothing was submitted" in out
    status, said = go_on({"x": X}, max_trials=5)
    assert (len(status.records.observations), said) == (5, "")


def test_a_dry_run_refuses_what_the_sweep_would(
    go_on: GoOn, tmp_path: Path, run_cli: Any, write_sweep: WriteSweep
) -> None:
    go_on({"x": X})
    (tmp_path / "other.py").write_text("def train(params, job): ...\n")
    file = write_sweep(function="other:train", parameters={"y": X}, executor="debug")
    code, _, err = run_cli("sweep", file, "--folder", tmp_path / "s", "--dry-run")
    assert code == 2
    assert "y is new: say was: VALUE" in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\nmax_trials: 3\nname: b\n", "line 3: name stands in line 1 already"),
        (
            "name: a\nparameters:\n  x: {space: log}\n  y: {space: log}\n  x: {space: linear}\n",
            "line 5: parameters.x stands in line 3 already",
        ),
        ("max_trials: 3\nname: ../../x; y\n", "line 2: name: '../../x; y' cannot name a folder"),
        ("name: /tmp/x\n", "line 1: name: '/tmp/x' cannot name a folder"),
        ("name: a\nexecutor_options:\n  timeout_min: 0\n", "line 3: executor_options.timeout_min"),
        ("name: a\nexecutor_options:\n  mem_gb: -1\n", "mem_gb is -1, expected more than 0"),
        ("name: a\nexecutor_options:\n  nodes: 0\n", "nodes is 0, expected at least 1"),
        (
            "name: a\ntiers:\n  big: {options: {timeout_min: 0}}\n",
            "line 3: tiers.big.options.timeout_min is 0, expected more than 0",
        ),
        ("name: a\nparameters:\n  x: {space: log, scale: -1, search_center: 1}\n", "line 3: "),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    rest = {
        "name": "name: a",
        "function": "function: a:b",
        "parameters": "parameters: {x: {space: log, search_center: 1}}",
    }
    keys = yaml.safe_load(text)
    text += "".join(f"{line}\n" for key, line in rest.items() if key not in keys)
    (tmp_path / "sweep.yaml").write_text(text)
    with pytest.raises(SweepFileError) as refusal:
        load_sweep(tmp_path / "sweep.yaml")
    assert said in str(refusal.value)


@pytest.mark.parametrize("name", ["team/sweep", "a b", "Ünïcode_1.2"])
def test_names_that_stay_in_their_folder(write_sweep: WriteSweep, name: str) -> None:
    assert load_sweep(write_sweep(name=name)).name == name
