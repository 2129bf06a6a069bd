"""The executors, one class for each place where jobs run: processes, Slurm, the controller itself.

An executor starts :class:`carbs.launchers.job.process.JobRun` in a job's folder. A job is known by
its folder, its name and, once it was submitted, its id: with these a controller that starts anew
finds out what has become of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil
import submitit

from carbs.launchers.cluster.options import PYTHON, local_options
from carbs.launchers.cluster.slurm import Slurm, place_pickle, sbatch_script
from carbs.launchers.errors import SchedulerDownError, SweepFileError
from carbs.launchers.job.environment import node_name
from carbs.launchers.job.files import read_report
from carbs.launchers.job.process import MAX_TIMEOUTS, START_MARK, JobRun
from carbs.launchers.job.protocol import KilledError
from carbs.launchers.job.runner import run

_LOG_LINES = 40
_SAFE_PATH = "PYTHONSAFEPATH"


@dataclass(frozen=True)
class Submission:
    """A job, or a job array, to be submitted or that was.

    Attributes:
        name: unique among the user's jobs; shared by the elements of an array.
        folders: of the job, or of the array's elements.
        log_folder: where its logs go.
        options: the sweep file's.
        exclude: nodes to keep away from.
        since: Unix time before which it cannot have been submitted.
    """

    name: str
    folders: tuple[Path, ...]
    log_folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    since: float = 0.0


@dataclass(frozen=True)
class Handle:
    """A submitted job: what is needed to ask after it."""

    id: str
    folder: Path
    log_folder: Path


@dataclass(frozen=True)
class JobState:
    """What the executor knows of a job.

    Attributes:
        is_alive: whether it is queued or running; None where nobody can say at the moment.
        state: in the scheduler's words, where it has any.
        node: where it runs.
        reason: why it waits, in the scheduler's words.
        advice: what to do where it will not start by itself.
    """

    is_alive: bool | None
    state: str = ""
    node: str | None = None
    reason: str = ""
    advice: str = ""


class Executor(Protocol):
    poll_s: float
    """Between two questions after all jobs."""
    grace_s: float
    """How long a job must be gone before that is believed."""

    def submit(self, submission: Submission) -> list[str]:
        """Start the jobs; returns their ids.

        Raises:
            SchedulerDownError: not now.
            SweepFileError: the options are impossible.
        """

    def find(self, submission: Submission) -> list[str]:
        """The ids of the jobs, where an earlier controller has submitted them; else none.

        Raises:
            SchedulerDownError: nobody can say at the moment.
        """

    def states(self, handles: Sequence[Handle]) -> list[JobState]:
        """What has become of jobs, in their order."""

    def cancel(self, handles: Sequence[Handle]) -> None:
        """End jobs, those that have ended already too."""

    def script(self, submission: Submission) -> str | None:
        """What would be handed to the scheduler; None where there is none."""


def make_executor(
    name: Literal["local", "slurm", "debug"], poll_s: float, grace_s: float
) -> Executor:
    """The executor of that name.

    Args:
        name: as the sweep file has it.
        poll_s, grace_s: as for :class:`SlurmExecutor`.
    """
    match name:
        case "local":
            return LocalExecutor()
        case "slurm":
            return SlurmExecutor(Slurm(), poll_s, grace_s)
        case "debug":
            return DebugExecutor()


def read_log(handle: Handle, n_lines: int = _LOG_LINES) -> str:
    """The last lines of a job's logs since it last started: what it printed, then its errors."""
    parts = []
    for path in log_files(handle):
        with contextlib.suppress(OSError):
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 200 * 1024))
                text = file.read().decode(errors="replace")
            lines = text.rpartition(START_MARK)[2].splitlines()
            parts.append("\n".join(lines[-n_lines:]))
    return "\n".join(part for part in parts if part)


def log_files(handle: Handle) -> list[Path]:
    """A job's logs: for each of its tasks what it printed, and its errors."""
    found = handle.log_folder.glob(f"{handle.id}_*_log.*")
    return sorted(found, key=lambda path: (path.suffix != ".out", path.name))


class DebugExecutor:
    """Runs each job at once, inside the controller: for breakpoints."""

    poll_s = 0.0
    grace_s = 0.0

    def submit(self, submission: Submission) -> list[str]:
        for folder in submission.folders:
            with contextlib.suppress(KilledError):  # the missing report says as much
                run(str(folder))
        return ["debug"] * len(submission.folders)

    def find(self, submission: Submission) -> list[str]:
        return []

    def states(self, handles: Sequence[Handle]) -> list[JobState]:
        return [JobState(False) for _ in handles]

    def cancel(self, handles: Sequence[Handle]) -> None:
        pass

    def script(self, submission: Submission) -> str | None:
        return None


class LocalExecutor:
    """Each job a process on this machine, which outlives the controller.

    A job gets GPUs of its own as long as there are enough; then the least used ones.
    """

    poll_s = 0.0
    grace_s = 0.0

    def __init__(self) -> None:
        self._started: dict[Path, Any] = {}  # submitit's jobs, our child processes
        self._found: dict[Path, psutil.Process] = {}  # started by an earlier controller
        self._gpus: dict[Path, list[str]] = {}  # of the jobs that run

    def submit(self, submission: Submission) -> list[str]:
        return [self._start(folder, submission.options) for folder in submission.folders]

    def _start(self, folder: Path, options: dict[str, Any]) -> str:
        executor = submitit.LocalExecutor(
            folder, MAX_TIMEOUTS, python=f"env -u {_SAFE_PATH} {PYTHON}"
        )
        try:
            executor.update_parameters(**local_options(options))
        except (TypeError, ValueError) as error:
            raise SweepFileError(f"executor_options for local: {error}") from None
        gpus = self._gpus[folder] = self._free_gpus(executor.parameters)
        executor.parameters.update(gpus_per_node=len(gpus), visible_gpus=gpus)
        with _detached(), _safe_path():
            job = self._started[folder] = executor.submit(JobRun(str(folder)))
        return str(job.job_id)

    def _free_gpus(self, options: dict[str, Any]) -> list[str]:
        """Those a job is to use: as many as it asks for, by default one for each of its tasks."""
        gpus = [str(gpu) for gpu in options.get("visible_gpus") or _visible_gpus()]
        n = options.get("gpus_per_node")
        if n is None:
            n = min(options.get("tasks_per_node", 1), len(gpus))
        if n > len(gpus):
            raise SweepFileError(
                f"executor_options for local: gpus_per_node is {n}, but this machine shows "
                f"{len(gpus)} GPUs"
            )
        self._gpus = {f: held for f, held in self._gpus.items() if self._uses_gpus(f)}
        n_users = Counter(gpu for held in self._gpus.values() for gpu in held)
        return sorted(gpus, key=lambda gpu: n_users[gpu])[:n]

    def _uses_gpus(self, folder: Path) -> bool:
        """A job that has reported is on its way out."""
        return read_report(folder) is None and self._is_alive(folder)

    def find(self, submission: Submission) -> list[str]:
        processes = [_find_process(folder) for folder in submission.folders]
        return [str(process.pid) for process in processes if process is not None]

    def states(self, handles: Sequence[Handle]) -> list[JobState]:
        return [JobState(self._is_alive(handle.folder), node=node_name()) for handle in handles]

    def _is_alive(self, folder: Path) -> bool:
        if folder in self._started:
            return not self._started[folder].done()
        if folder not in self._found:
            process = _find_process(folder)
            if process is None:
                return False
            self._found[folder] = process
            with contextlib.suppress(psutil.Error):
                self._gpus[folder] = _listed(process.environ().get("CUDA_VISIBLE_DEVICES", ""))
        process = self._found[folder]
        with contextlib.suppress(psutil.NoSuchProcess):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False

    def cancel(self, handles: Sequence[Handle]) -> None:
        for handle in handles:
            process = _find_process(handle.folder)
            if process is not None:
                family = [process, *process.children(recursive=True)]
                for member in family:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        member.kill()
                psutil.wait_procs(family, timeout=10)

    def script(self, submission: Submission) -> str | None:
        return None


class SlurmExecutor:
    """Each job a Slurm job, or the element of a job array."""

    def __init__(self, slurm: Slurm, poll_s: float, grace_s: float) -> None:
        self.poll_s = poll_s
        self.grace_s = grace_s
        self._slurm = slurm

    def submit(self, submission: Submission) -> list[str]:
        submission.log_folder.mkdir(parents=True, exist_ok=True)
        runs = [JobRun(str(folder)) for folder in submission.folders]
        options = _with_excluded(submission)
        return self._slurm.submit(submission.log_folder, submission.name, options, runs)

    def find(self, submission: Submission) -> list[str]:
        found = self._slurm.find(submission.name, submission.since)
        if found is None:
            raise SchedulerDownError(f"cannot ask after the job {submission.name}")
        if len(submission.folders) == 1:
            for job_id in found[-1:]:
                place_pickle(submission.log_folder, job_id)
            return found[-1:]
        return found

    def states(self, handles: Sequence[Handle]) -> list[JobState]:
        queue = self._slurm.queue()
        if queue is None:
            return [JobState(None) for _ in handles]
        absent = {handle.id for handle in handles} - queue.keys()
        accounting = self._slurm.accounting(absent) if absent else {}
        states = []
        for handle in handles:
            if handle.id in queue:
                found = queue[handle.id]
                reason, advice = found.reason, found.advice(handle.id)
                states.append(JobState(found.is_alive, found.state, found.node, reason, advice))
            elif accounting is None:
                states.append(JobState(None))
            elif handle.id in accounting:
                # The queue knows better whether it is alive: the database lags.
                found = accounting[handle.id]
                states.append(JobState(False, found.state, found.node))
            else:
                states.append(JobState(False, "UNKNOWN"))
        return states

    def cancel(self, handles: Sequence[Handle]) -> None:
        if handles and not self._slurm.cancel(handle.id for handle in handles):
            raise SchedulerDownError("scancel gets no answer: the jobs go on")

    def cancel_named(self, prefix: str) -> list[str]:
        """Cancel all jobs whose name begins so, those too of which no controller knows.

        Returns:
            Their ids.
        """
        names = self._slurm.names()
        if names is None:
            raise SchedulerDownError("squeue gets no answer: nothing was cancelled")
        ids = [job_id for job_id, name in names.items() if name.startswith(prefix)]
        if ids and not self._slurm.cancel(ids):
            raise SchedulerDownError("scancel gets no answer: the jobs go on")
        return ids

    def script(self, submission: Submission) -> str | None:
        options = _with_excluded(submission)
        return sbatch_script(
            submission.log_folder, submission.name, options, len(submission.folders)
        )


def _with_excluded(submission: Submission) -> dict[str, Any]:
    given = submission.options.get("exclude", submission.options.get("slurm_exclude"))
    nodes = [*([given] if given else []), *submission.exclude]
    return {**submission.options, **({"exclude": ",".join(nodes)} if nodes else {})}


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


@contextlib.contextmanager
def _safe_path() -> Iterator[None]:
    """As Python's -P, for submitit's own process, whose command we do not choose."""
    before = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = before


def _visible_gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return _listed(named)
    import torch  # slow to import, and only a machine with GPUs of its own needs it

    return [str(i) for i in range(torch.cuda.device_count())]


def _listed(named: str) -> list[str]:
    return [gpu.strip() for gpu in named.split(",") if gpu.strip()]


def _find_process(folder: Path) -> psutil.Process | None:
    """submitit's process of the job in this folder, whichever controller has started it."""
    for process in psutil.process_iter(["cmdline"]):
        cmdline = process.info["cmdline"] or []
        if str(folder) in cmdline and any("submitit.local" in word for word in cmdline):
            return process
    return None
