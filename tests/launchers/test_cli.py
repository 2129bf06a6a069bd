"""The command line: plain words, exit codes, one line a trial."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.main import get_command

from carbs.launchers.cli.app import app

ROOT = Path(__file__).parents[2]

WriteSweep = Callable[..., Path]
WriteModule = Callable[[str], str]
RunCli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sweep_file(write_module: WriteModule, write_sweep: WriteSweep) -> Path:
    source = (
        "def train(params, job):\n"
        "    if job.folder.name.startswith('00002'): raise ValueError('odd')\n"
        "    x = params['x']\n"
        "    return {'output': 1 + x**-0.5, 'cost': 2.0 * x}\n"
    )
    return write_sweep(
        function=f"{write_module(source)}:train", executor="debug", max_trials=7, max_in_flight=1
    )


@pytest.mark.parametrize("arguments", [(), ("sweep",), ("demo",)])
def test_help(run_cli: RunCli, arguments: tuple[str, ...]) -> None:
    code, out, err = run_cli(*arguments, "--help")
    assert code == 0
    assert "Usage: " in out
    assert ("--folder" in out) == bool(arguments)
    assert err == ""


def test_plain_output_is_one_line_a_trial(
    run_cli: RunCli, sweep_file: Path, tmp_path: Path
) -> None:
    code, out, err = run_cli("sweep", sweep_file, "--folder", tmp_path / "sweep")
    assert code == 0, err
    lines = out.splitlines()
    for number, line in enumerate(lines[:7]):
        if number == 2:
            assert re.fullmatch(r"trial +2  failed: ValueError: odd  x=\S+", line)
        else:
            assert re.fullmatch(rf"trial +{number}  loss \d\.\d+  cost +\d+\.\d+ s  x=\S+", line)
    assert re.fullmatch(r"6 trials done, 1 failed, cost spent \d+\.\d s", lines[7])
    assert not [line for line in lines[8:] if line.startswith("trial")]


def test_options_stand_in_for_the_file(run_cli: RunCli, sweep_file: Path, tmp_path: Path) -> None:
    outs = []
    for seed in ("1", "2"):
        _, out, _ = run_cli(
            "sweep", sweep_file, "--folder", tmp_path / seed, "--seed", seed, "--max-trials", "3"
        )
        assert "2 trials done, 1 failed" in out
        outs.append(out)
    assert outs[0] != outs[1]


def assert_plain_error(outcome: tuple[int, str, str], *said: str) -> None:
    code, out, err = outcome
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for words in said:
        assert words in err


def test_errors_are_told_in_plain_words(
    run_cli: RunCli, sweep_file: Path, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    absent = tmp_path / "absent.yaml"
    assert_plain_error(run_cli("sweep", absent), f"cannot read the sweep file {absent}")
    assert_plain_error(
        run_cli("sweep", sweep_file, "--executor", "pbs"), "executor", "'local', 'slurm' or 'debug'"
    )
    assert_plain_error(
        run_cli("sweep", sweep_file, "--folder", sweep_file / "below"),
        f"cannot write the sweep's folder {sweep_file / 'below'}",
        "--folder",
    )
    assert_plain_error(
        run_cli("sweep", write_sweep(max_trails=3), "--folder", tmp_path / "sweep"),
        "did you mean 'max_trials'",
    )


def test_a_function_that_is_not_there_is_said_before_anything_runs(
    run_cli: RunCli, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    for module in ("no_such_module", "no_such_package.module"):
        assert_plain_error(
            run_cli("sweep", write_sweep(function=f"{module}:train"), "--folder", tmp_path / "s"),
            f"there is no module '{module}'",
            str(tmp_path),
        )
    assert not (tmp_path / "s" / "jobs" / "00000-1").exists()


def test_a_name_that_its_module_lacks_is_said_before_anything_runs(
    run_cli: RunCli, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    (tmp_path / "fn.py").write_text("raise SystemExit\ndef train(params, job): ...\n")
    file = write_sweep(function="fn:trian")
    outcome = run_cli("sweep", file, "--folder", tmp_path / "s")
    assert_plain_error(outcome, f"{tmp_path / 'fn.py'} has no 'trian', did you mean 'train'?")
    code, out, _ = run_cli("validate", file)
    assert code == 1
    assert "has no 'trian'" in out
    for text in (
        "from json import loads as trian",
        "from os.path import *",
        "trian = lambda params, job: None",
        "if True:\n    async def trian(): ...",
        "globals()['tri' + 'an'] = print",
        "def __getattr__(name): return print",
        "no Python",
    ):
        (tmp_path / "fn.py").write_text(text + "\n")
        assert run_cli("validate", file)[0] == 0, text
    assert run_cli("validate", write_sweep(function="carbs.launchers.lm.train:train"))[0] == 0
    assert not (tmp_path / "s").exists()


def test_an_error_during_the_sweep_is_plain_too(
    run_cli: RunCli, write_module: WriteModule, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    module = write_module("def train(params, job): raise RuntimeError('no luck')\n")
    file = write_sweep(function=f"{module}:train", executor="debug")
    code, out, err = run_cli("sweep", file, "--folder", tmp_path / "sweep")
    assert code == 2
    assert len(out.splitlines()) == 5
    assert "error: all of the first 5 trials failed" in err
    assert "RuntimeError: no luck" in err
    # What the jobs themselves print is theirs; the message stands below it, without a traceback.
    assert "Traceback" not in err[err.index("error: ") :]


def test_a_database_that_cannot_be_opened(
    run_cli: RunCli, write_module: WriteModule, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    module = write_module("def train(params, job): ...\n")
    storage = f"sqlite:///{tmp_path}/no/such/folder/study.db"
    file = write_sweep(function=f"{module}:train", storage=storage)
    assert_plain_error(run_cli("sweep", file, "--folder", tmp_path / "sweep"), "study.db")


def test_a_database_that_is_none(run_cli: RunCli, sweep_file: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "study.db").write_text("not a database" * 100)
    assert_plain_error(run_cli("sweep", sweep_file, "--folder", tmp_path / "sweep"), "study.db")


def test_wrong_usage(run_cli: RunCli, sweep_file: Path) -> None:
    for arguments in (("sweep",), ("swep",), ("sweep", sweep_file, "--sead", "1")):
        code, _, err = run_cli(*arguments)
        assert code == 2
        assert "Usage: " in err
        assert "Traceback" not in err


def test_every_command_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "command_line.md").read_text()
    documented = re.findall(r"^\| `carbs (\w+)", page, re.MULTILINE)
    assert sorted(documented) == sorted(get_command(app).commands)  # type: ignore[attr-defined]


def test_the_shell_completes_commands_and_sweeps(tmp_path: Path) -> None:
    (tmp_path / "sweeps" / "mine").mkdir(parents=True)
    (tmp_path / "sweeps" / "mine" / "sweep.json").touch()
    (tmp_path / "my-sweep.yaml").touch()

    def completed(line: str) -> list[str]:
        asked = {"_CARBS_COMPLETE": "complete_bash", "COMP_WORDS": line}
        done = subprocess.run(
            [Path(sys.executable).parent / "carbs"],
            env={**os.environ, **asked, "COMP_CWORD": str(len(line.split()) - 1)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        return done.stdout.split()

    assert completed("carbs va") == ["validate"]
    assert sorted(completed("carbs status m")) == ["mine", "my-sweep.yaml"]
