"""The job protocol: what a training function is given, what it gives back, and what it may raise.

A training function is any importable ``train(params, job)``. It returns a :class:`Result`, or a
mapping with ``output``, ``cost`` and maybe ``metrics``. An exception is a failure of the
configuration; :class:`BadConfigurationError` gives it a reason in plain words and what it cost. A
command may stand in its place: see :mod:`carbs.launchers.job.script`.

Where the scheduler takes the machine away, by SIGTERM, SIGUSR2 or a time limit, a job that was
preempted writes no report: its next attempt goes on from what it left in the checkpoint folder, for
which there is :mod:`carbs.launchers.job.checkpoint`.

A job of several tasks runs the function in each. The report is that of the first task, or of
whichever failed first.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

# In the job's folder: what the function has reported so far, a line each time; and the controller's
# wish that it should stop.
CURVE = "curve.jsonl"
STOP = "stop.json"

# How often a job looks whether another copy of it has taken over.
_LOOK_EVERY_S = 1.0
# Seconds before the deadline at which a job is to end; less where it has little time in all.
DEADLINE_MARGIN_S = 60.0


class BadConfigurationError(Exception):
    """The configuration cannot be trained (divergence, out of memory): a failure, not a result.

    Args:
        reason: in a few words, for the table of failures.
        cost: what the attempt spent before it failed, in the sweep's unit of cost.
    """

    def __init__(self, reason: str, cost: float | None = None) -> None:
        super().__init__(reason, cost)
        self.reason = reason
        self.cost = cost

    def __str__(self) -> str:
        return self.reason


class StoppedEarly(Exception):  # noqa: N818  # the controller's wish, not an error
    """Raised by :meth:`Job.report` where the run shall stop: let it pass.

    Args:
        cost: what the run has spent, in the sweep's unit of cost.
    """

    def __init__(self, cost: float) -> None:
        super().__init__(cost)
        self.cost = cost


class Preempted(Exception):  # noqa: N818  # the scheduler's wish, not an error
    """To be raised once a checkpoint is written and the machine is about to be taken away.

    Args:
        reason: what :meth:`Job.preemption` said.
    """


class Superseded(Preempted):
    """Raised where nobody waits for this copy of the job any more: let it pass.

    A node that its scheduler has given up may still train, while the job runs again elsewhere.
    """


class TaskLostError(Exception):
    """Another task of the same job has failed, or does not answer."""


class SetupError(Exception):
    """What the user's code needs is not there: no fault of the configuration."""


class CommandFailedError(Exception):
    """A command has ended with an exit code.

    Args:
        reason: the exit code, and what it said last.
        log: its traceback, or its last lines.
    """

    def __init__(self, reason: str, log: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.log = log


class KilledError(Exception):
    """A command was killed by a signal: as when a function's process is, there is no report."""


@dataclass(frozen=True)
class Job:
    """What a training function is given besides its parameters.

    Attributes:
        folder: this attempt's own folder, for logs and scratch.
        shared_folder: one folder for all jobs of the sweep, for prepared data. Jobs run at the
            same time: whoever writes here takes a lock.
        seed: the seed of this trial; the same in every attempt at it.
        settings: the ``settings`` of the sweep file, for the function alone to interpret.
        checkpoint_folder: one for all attempts at this trial, removed once it has a result; by
            default ``checkpoints`` in the attempt's own folder.
        deadline: Unix time at which the scheduler will kill the job; None where it is not known.
        started: Unix time.
        superseded_by: files of which any says that nobody waits for this copy of the job any more.
    """

    folder: Path
    shared_folder: Path
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    checkpoint_folder: Path = Path()
    deadline: float | None = None
    started: float = field(default_factory=time.time)
    superseded_by: tuple[Path, ...] = ()
    _requests: list[str] = field(default_factory=list, init=False, repr=False, compare=False)
    _looked: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.checkpoint_folder == Path():
            object.__setattr__(self, "checkpoint_folder", self.folder / "checkpoints")

    def should_checkpoint(self) -> bool:
        """Whether to write a checkpoint now and raise :class:`Preempted`: ask after each step.

        Raises:
            Superseded: another copy of the job has taken over.
        """
        return self.preemption() is not None

    def preemption(self, margin_s: float = 0.0) -> str | None:
        """Why the machine is about to be taken away; None where it is not.

        Args:
            margin_s: seconds that a checkpoint needs before the deadline, if more than usual.

        Raises:
            Superseded: another copy of the job has taken over.
        """
        self._raise_if_superseded()
        if self._requests:
            return self._requests[0]
        if self.deadline is not None:
            margin_s = max(margin_s, min(DEADLINE_MARGIN_S, (self.deadline - self.started) / 10))
            if time.time() >= self.deadline - margin_s:
                return "time limit"
        return None

    def request_checkpoint(self, reason: str) -> None:
        """Make :meth:`should_checkpoint` true. Signal handlers may call it: it takes no lock."""
        self._requests.append(reason)

    def report(self, progress: float, output: float, cost: float) -> None:
        """Tell how the run goes, some ten times along it, so that a hopeless one can be stopped.

        Args:
            progress: share of the run that is done, in (0, 1], rising from report to report.
            output: the objective now, or what goes along with it, such as a mean training loss.
            cost: what the run has spent so far, in the sweep's unit of cost.

        Raises:
            StoppedEarly: the controller has decided to stop the run; not at its end.
            Superseded: another copy of the job has taken over.
            BadConfigurationError: the output is not finite.
            ValueError: the progress or the cost is out of its range.
        """
        if not 0 < progress <= 1:
            raise ValueError(f"progress is {progress}, expected a share of the run in (0, 1]")
        if not 0 < cost < math.inf:
            raise ValueError(f"cost is {cost}, expected a positive, finite number")
        self._raise_if_superseded()
        if not math.isfinite(output):
            raise BadConfigurationError(f"output is {output} at progress {progress:g}", cost)
        point = CurvePoint(progress=progress, output=output, cost=cost)
        with (self.folder / CURVE).open("a") as file:
            file.write(point.model_dump_json() + "\n")
        if progress < 1 and self.should_stop():
            raise StoppedEarly(cost)

    def should_stop(self) -> bool:
        """Whether the controller has decided to stop the run; :meth:`report` says so by itself."""
        return (self.folder / STOP).exists()

    def is_superseded(self) -> bool:
        """Whether another copy of the job has taken over, or has already reported."""
        return any(path.exists() for path in self.superseded_by)

    def _raise_if_superseded(self) -> None:
        now = time.monotonic()
        if self._looked and now - self._looked[-1] < _LOOK_EVERY_S:
            return
        self._looked[:] = [now]
        if self.is_superseded():
            raise Superseded(f"another copy of the job in {self.folder} has taken over")


class CurvePoint(BaseModel):
    """A line of ``curve.jsonl``: what one call of :meth:`Job.report` said."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    progress: float = Field(gt=0, le=1)
    output: float
    cost: float = Field(gt=0)


class Result(BaseModel):
    """A finished run.

    Attributes:
        output: the objective, as measured (lower is better unless the sweep says otherwise).
        cost: what the run spent, in the sweep's unit (seconds of training by default).
        metrics: everything else worth keeping, as JSON: evaluations, FLOPs, environment.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64")

    output: float
    cost: float = Field(gt=0, allow_inf_nan=False)
    metrics: dict[str, Any] = {}
