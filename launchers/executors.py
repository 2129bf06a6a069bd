"""Where jobs run: local processes, Slurm, or the controller itself. All that knows submitit.

An executor is told a job's folder and starts :func:`launchers.job.run` in it. The folder is the
job's identity: a controller that starts anew finds from it whether the job is still alive.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import psutil
import submitit

from launchers.config import SweepConfig
from launchers.errors import SweepFileError
from launchers.job import run


class Executor(Protocol):
    def submit(self, folder: Path) -> str:
        """Start the job in this folder; returns the job id."""

    def is_alive(self, folder: Path) -> bool:
        """Whether the job in this folder is queued or running."""


def make_executor(config: SweepConfig) -> Executor:
    """The executor that the sweep file names.

    Raises:
        SweepFileError: submitit does not know one of its options.
    """
    match config.executor:
        case "local":
            return LocalExecutor(config.executor_options)
        case "slurm":
            return SlurmExecutor(config.executor_options)
        case "debug":
            return DebugExecutor()


class DebugExecutor:
    """Runs each job at once, inside the controller: for breakpoints."""

    def submit(self, folder: Path) -> str:
        run(str(folder))
        return "debug"

    def is_alive(self, folder: Path) -> bool:
        return False


class LocalExecutor:
    """Each job a process on this machine, which outlives the controller."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = {"timeout_min": 24 * 60, **options}
        self._started: dict[Path, Any] = {}  # submitit's jobs, our child processes
        self._found: dict[Path, psutil.Process] = {}  # started by an earlier controller

    def submit(self, folder: Path) -> str:
        executor = _executor("local", folder, self._options)
        with _detached():
            job = self._started[folder] = executor.submit(run, str(folder))
        return str(job.job_id)

    def is_alive(self, folder: Path) -> bool:
        if folder in self._started:
            return not self._started[folder].done()
        if folder not in self._found:
            process = _find_process(folder)
            if process is None:
                return False
            self._found[folder] = process
        process = self._found[folder]
        with contextlib.suppress(psutil.NoSuchProcess):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False


class SlurmExecutor:
    """Each job a Slurm job."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options

    def submit(self, folder: Path) -> str:
        job = _executor("slurm", folder, self._options).submit(run, str(folder))
        (folder / "slurm_job_id").write_text(str(job.job_id))
        return str(job.job_id)

    def is_alive(self, folder: Path) -> bool:
        try:
            job_id = (folder / "slurm_job_id").read_text()
        except FileNotFoundError:
            return False
        return not submitit.SlurmJob(folder, job_id).done()


def _executor(cluster: str, folder: Path, options: dict[str, Any]) -> Any:
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    try:
        executor.update_parameters(name=folder.name, **options)
    except (NameError, TypeError, ValueError) as error:
        raise SweepFileError(f"executor_options for {cluster}: {error}") from None
    return executor


@contextlib.contextmanager
def _detached() -> Iterator[None]:
    """Processes started inside see neither the terminal's Ctrl-C nor its end, nor hold its output.

    They inherit the blocked signals; our own are delivered when the block ends. Their logs are
    files, and a pipe behind the controller must not wait for them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    sys.stdout.flush()
    kept = {fd: os.dup(fd) for fd in (1, 2)}
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        for fd in kept:
            os.dup2(nowhere, fd)
        yield
    finally:
        for fd, copy in kept.items():
            os.dup2(copy, fd)
            os.close(copy)
        os.close(nowhere)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _find_process(folder: Path) -> psutil.Process | None:
    """A process of the job in this folder, started by an earlier controller."""
    for process in psutil.process_iter(["cmdline"]):
        cmdline = process.info["cmdline"] or []
        if str(folder) in cmdline and any("submitit" in word for word in cmdline):
            return process
    return None
