"""``carbs doctor``: what will not work is said, with how to mend it."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carbs.launchers.cli import doctor

WriteSweep = Callable[..., Path]
RunCli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def findings(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Exit code, and what was found by what was looked at."""
    monkeypatch.chdir(tmp_path)

    def findings(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
        code, out, err = run_cli("doctor", "--json", *arguments)
        assert err == ""
        return code, {finding["what"]: finding for finding in json.loads(out)}

    return findings


def test_a_machine_that_is_fit(
    findings: Callable[..., Any],
    run_cli: RunCli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm, whatever this machine has
    code, found = findings()
    assert code == 0
    assert {found[what]["state"] for what in ("Python", "torch", "Slurm", "database")} == {"ok"}
    assert "agrees" in found["clock"]["found"]
    assert list(tmp_path.iterdir()) == []  # nothing is left behind
    code, out, _ = run_cli("doctor")
    assert code == 0
    assert "ok            Slurm: none here; sweeps run as local processes" in out.splitlines()


def test_a_sweep_for_slurm_where_there_is_none(
    findings: Callable[..., Any], write_sweep: WriteSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write_sweep(executor="slurm")
    monkeypatch.setenv("PATH", str(file.parent))
    code, found = findings(file)
    assert code == 1
    assert found["Slurm"]["state"] == "will not work"
    assert "sbatch" in found["Slurm"]["found"]
    assert "login node" in found["Slurm"]["remedy"]


def test_a_slurm_that_does_not_answer(
    findings: Callable[..., Any],
    write_sweep: WriteSweep,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sbatch", "squeue", "sinfo", "sacct", "scancel", "scontrol"):
        (commands / name).write_text("#!/bin/sh\nexit 1\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    code, found = findings(write_sweep(executor="slurm"))
    assert code == 1
    assert found["Slurm"]["found"] == "its controller does not answer"
    assert findings(write_sweep(executor="local"))[0] == 0


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("postgresql+psycopg://me:hunter2@127.0.0.1:9/carbs", "127.0.0.1"),
        ("postgresql+psycopg://me:${NOT_SET}@127.0.0.1:9/carbs", "NOT_SET, which is not set"),
        ("nonsense", "nonsense"),
    ],
)
def test_a_database_that_cannot_be_reached(
    findings: Callable[..., Any], write_sweep: WriteSweep, storage: str, said: str
) -> None:
    code, found = findings(write_sweep(storage=storage))
    assert code == 1
    assert found["database"]["state"] == "will not work"
    assert said in found["database"]["found"] or storage == "nonsense"
    assert "hunter2" not in json.dumps(found)


def test_a_database_that_answers(
    findings: Callable[..., Any], write_sweep: WriteSweep, postgres: str
) -> None:
    code, found = findings(write_sweep(storage=postgres))
    assert (code, found["database"]["state"]) == (0, "ok")


def test_a_folder_that_locks_no_files(
    findings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: Any) -> None:
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(sqlite3, "connect", connect)
    code, found = findings()
    assert code == 1
    assert "database is locked" in found["database"]["found"]


def test_little_space_and_another_clock(
    findings: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_LITTLE_SPACE", 2**80)
    now = doctor.time.time
    monkeypatch.setattr(doctor.time, "time", lambda: now() + 120)
    code, found = findings()
    assert code == 0
    assert found["disk"]["state"] == "warning"
    assert "make room" in found["disk"]["remedy"]
    assert found["clock"]["found"] == "the file system's is 120 s behind"
    monkeypatch.setattr(doctor, "_NO_SPACE", 2**80)
    assert findings()[0] == 1
