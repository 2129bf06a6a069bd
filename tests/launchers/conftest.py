"""A training function beside its sweep file, and the `carbs` command as a process."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import yaml

from carbs.launchers.cli.app import main

WriteModule = Callable[[str], str]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteModule:
    """Writes a module with a new name into ``tmp_path``; returns the name."""
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write_module(source: str) -> str:
        name = f"training_{uuid.uuid4().hex}"
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return name

    return write_module


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """What the jobs of a sweep append to."""
    path = tmp_path / "log.txt"
    path.touch()
    return path


@pytest.fixture
def write_sweep(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small sweep file, with some keys changed."""

    def write_sweep(**changes: Any) -> Path:
        content = {
            "name": "small",
            "function": "training:train",
            "parameters": {"x": {"space": "log", "scale": 0.5, "search_center": 1.0}},
            "max_trials": 6,
            "max_in_flight": 2,
            **changes,
        }
        path = tmp_path / "sweep.yaml"
        path.write_text(
            yaml.safe_dump(
                {key: value for key, value in content.items() if value is not None},
                sort_keys=False,
            )
        )
        return path

    return write_sweep


@pytest.fixture
def run_cli(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Exit code, standard output and standard error of ``carbs ...``, in this process."""

    def run_cli(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["carbs", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run_cli


class Command:
    """A running ``carbs ...`` in a process group of its own, as a terminal's shell makes one.

    Its output goes to files: its jobs inherit what it writes to, and a pipe would stay open.
    """

    def __init__(self, arguments: tuple[str | Path, ...], folder: Path) -> None:
        self._out, self._err = folder / "out.txt", folder / "err.txt"
        program = "from carbs.launchers.cli.app import main; main()"
        with self._out.open("w") as out, self._err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, *map(str, arguments)],
                stdout=out,
                stderr=err,
                process_group=0,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def wait(self) -> tuple[int, str, str]:
        """Exit code and output."""
        code = self.process.wait(timeout=300)
        return code, self._out.read_text(), self._err.read_text()

    def output(self) -> str:
        """What it has printed so far."""
        return self._out.read_text()

    def press_ctrl_c(self) -> tuple[int, str, str]:
        os.killpg(self.process.pid, signal.SIGINT)
        return self.wait()

    def kill_with_jobs(self) -> None:
        for other in psutil.process_iter():
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                if os.getpgid(other.pid) == self.process.pid:
                    other.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def carbs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Command]]:
    """Starts ``carbs ...``; what it has left running at the end of the test is killed."""
    started: list[Command] = []

    def carbs(*arguments: str | Path) -> Command:
        started.append(Command(arguments, tmp_path_factory.mktemp("command")))
        return started[-1]

    yield carbs
    for command in started:
        command.kill_with_jobs()


@pytest.fixture(autouse=True)
def optuna_as_it_was() -> Iterator[None]:
    """A sweep sets Optuna's verbosity for the whole process."""
    before = optuna.logging.get_verbosity()
    yield
    optuna.logging.set_verbosity(before)
