"""What runs in a job's process, under submitit: look at the node, train, ask for more time.

A job that was preempted or runs out of time is requeued by submitit, in the way in which it does so
for checkpointable functions: the training function has raised
:class:`carbs.launchers.job.protocol.Preempted` once its checkpoint is written. One that takes no
notice of the signals is killed by the scheduler; what becomes of it is for the controller to judge.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from submitit.core.utils import DelayedSubmission

from carbs.launchers.job.environment import find_deadline, job_id, node_name, task
from carbs.launchers.job.files import (
    Start,
    Unhealthy,
    is_cancelled,
    read_job,
    read_report,
    write_report,
    write_start,
)
from carbs.launchers.job.runner import run

if TYPE_CHECKING:
    from carbs.launchers.job.health import HealthReport

# Nearer than this to its deadline, a job that is cut off is so by its time limit.
TIME_LIMIT_MARGIN_S = 120.0
_LAST_WORDS_S = 2.0
OUT_OF_TIME = "carbs: cut off by the time limit"
START_MARK = "carbs: job starts"

# Never reached: whether a job that runs out of time may go on is for the controller to judge.
MAX_TIMEOUTS = 1_000_000


class JobRun:
    """The callable that submitit is given: the job in this folder.

    Args:
        folder: with a ``job.json``.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self) -> None:
        path = Path(self.folder)
        requeue = signal.getsignal(signal.SIGUSR2)
        restart = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if read_report(path) is not None or is_cancelled(path):
            return
        start = self._start(path, restart)
        if start is None:
            return
        checkpoints = read_job(path).checkpoint_folder or path / "checkpoints"
        before = checkpoint_progress(checkpoints)
        with _announcing_time_limit(start):
            if run(self.folder, start.deadline, restart):
                return
        if start.deadline is not None and time.time() > start.deadline - TIME_LIMIT_MARGIN_S:
            print(OUT_OF_TIME, file=sys.stderr)
        # Without progress it might go on so forever: that is for the controller to judge.
        is_ahead = checkpoint_progress(checkpoints) > before
        if is_ahead and callable(requeue) and not is_cancelled(path):
            requeue(signal.SIGUSR2, None)  # submitit's own handler, which run() had replaced

    def checkpoint(self) -> DelayedSubmission:
        """For submitit: how the job goes on. All that it needs lies in its folders."""
        return DelayedSubmission(self)

    def _start(self, path: Path, restart: int) -> Start | None:
        """Write down where the job has started; None where the node is not fit for it."""
        job_file = read_job(path)
        start = Start(
            node=node_name(),
            started=time.time(),
            deadline=find_deadline(),
            job_id=job_id(),
            attempt=job_file.attempt,
            restart=restart,
        )
        # Below it in the logs stands what is of this start, and not of one before.
        for stream in (sys.stdout, sys.stderr):
            print(f"{START_MARK} (attempt {start.attempt}, restart {restart})", file=stream)
        if task()[0] == 0:
            write_start(path, start)  # already now: the check itself may hang
        if job_file.health_folder is None:
            return start
        # It loads torch, which not every function needs.
        from carbs.launchers.job.health import check_node, compared

        health = check_node(job_file.checkpoint_folder or path, n_devices=job_file.n_devices)
        if job_file.max_slowdown is not None:
            others = read_health(job_file.health_folder, health.node)
            health = compared(health, others, job_file.max_slowdown)
        if not health.may_train:
            if not health.is_healthy:  # else another task says what is wrong
                unhealthy = Unhealthy(
                    node=health.node,
                    problems=list(health.problems),
                    attempt=job_file.attempt,
                    restart=restart,
                )
                write_report(path, unhealthy)
            return None
        _keep_health(job_file.health_folder, health)
        start = start.model_copy(update={"health": health.model_dump(mode="json")})
        if task()[0] == 0:
            write_start(path, start)
        return start


@contextlib.contextmanager
def _announcing_time_limit(start: Start) -> Iterator[None]:
    """Without a scheduler nobody says why a job is killed: it says so itself, right before."""
    if start.deadline is None or "SUBMITIT_LOCAL_TIMEOUT_S" not in os.environ:
        yield
        return
    left = start.deadline - time.time()
    margin = min(_LAST_WORDS_S, 0.1 * left)
    timer = threading.Timer(left - margin, print, [OUT_OF_TIME], {"file": sys.stderr})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def read_health(folder: Path, but: str | None = None) -> list[HealthReport]:
    """What jobs of the sweep have found of their nodes: the newest report of each.

    Args:
        folder: of the reports.
        but: a node to leave out.
    """
    from carbs.launchers.job.health import HealthReport

    reports = []
    for file in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            reports.append(HealthReport.model_validate_json(file.read_text()))
    return [report for report in reports if report.node != but]


def _keep_health(folder: Path, report: HealthReport) -> None:
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
        draft = folder / f"{report.node}.{os.getpid()}.tmp"
        draft.write_text(report.model_dump_json())
        draft.replace(folder / f"{report.node}.json")


def checkpoint_progress(folder: Path) -> float:
    """A number that rises with each checkpoint: the newest step by its name, or the newest time."""
    steps, times = [0.0], [0.0]
    for path in folder.glob("*") if folder.is_dir() else ():
        named = re.match(r"step-(\d+)", path.name)
        if named is not None:
            steps.append(float(named[1]))
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(steps) if len(steps) > 1 else max(times)
