"""A run and its attempts: what is written down of each, so that another controller finds its job.

Where a machine spoils an attempt, another follows, in a folder of its own: ``jobs/00017-1``, then
``jobs/00017-2``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from carbs.launchers.cluster.executors import JobState
from carbs.launchers.controller.outcomes import BadConfiguration, Completed, StoppedRun
from carbs.spaces import Params


class Attempt(BaseModel):
    """One attempt at a run: what a controller must know to find its job again.

    Attributes:
        attempt: its number, from 1.
        folder: of the job, below the sweep's.
        id: the scheduler's; None before it was submitted.
        name: the scheduler's; elements of a job array share it.
        logs: folder of the log files, below the sweep's.
        tier: of resources; None for the sweep's own options.
        element, n_elements: which element of which array this is.
        submitted: Unix time.
        exclude: nodes that this attempt keeps away from.
        faults: attempts in a row that a machine has spoilt without any progress.
        unexplained: attempts that have ended without an explanation.
        progress: what the checkpoint folder showed when it was submitted.
        is_cancelled: by the user; what follows is no retry.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    attempt: int
    folder: str
    id: str | None = None
    name: str = ""
    logs: str = ""
    tier: str | None = None
    element: int = 0
    n_elements: int = 1
    submitted: float = 0.0
    exclude: tuple[str, ...] = ()
    faults: int = 0
    unexplained: int = 0
    progress: float = 0.0
    is_cancelled: bool = False


class PastAttempt(BaseModel):
    """Why an attempt was followed by another.

    Attributes:
        log: its last lines.
        log_files: where the rest is, below the sweep's folder.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    attempt: int
    id: str | None
    node: str | None
    reason: str
    log: str = ""
    log_files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lost:
    """Machines have spoilt every attempt: the run is given up, and teaches nothing."""

    reason: str


Ending = Completed | BadConfiguration | StoppedRun | Lost


@dataclass(eq=False)
class Run:
    """A configuration that is to be run, and how far that is.

    Attributes:
        key: of its folders: ``jobs/KEY-1`` and so on.
        save: writes down an attempt; called before the next step is taken.
        save_past: writes down why attempts were not the last.
        is_stopped: whether it is to end at its next report.
        curve: rows of progress, output and cost, as reported so far.
        state: what the scheduler last said.
        evidence: last lines and paths of the log, once it has ended badly.
        kept_curve: what of the curve is written down.
        seen: when its job was alive, for the last time.
        gone_since: when its job was first missed.
        curve_stamp: the curve's file, and how long it was when it was last read.
    """

    key: str
    params: Params
    seed: int
    save: Callable[[Attempt], None]
    save_past: Callable[[list[PastAttempt]], None]
    attempt: Attempt
    past: list[PastAttempt] = field(default_factory=list)
    is_stopped: bool = False
    curve: list[list[float]] = field(default_factory=list)
    state: JobState | None = None
    evidence: PastAttempt | None = None
    kept_curve: list[list[float]] = field(init=False)
    seen: float | None = field(default=None, init=False)
    gone_since: float | None = field(default=None, init=False)
    curve_stamp: tuple[Path, int] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.kept_curve = self.curve

    def __str__(self) -> str:
        name = f"trial {int(self.key)}" if self.key.isdigit() else f"the {self.key} run"
        job = "not submitted" if self.attempt.id is None else f"job {self.attempt.id}"
        return f"{name}: {job}"


def keep_attempt(folder: Path, name: str, attempt: Attempt) -> None:
    """Write down an attempt at a run outside the search, such as the check run."""
    file = _file(folder, name)
    temporary = file.with_suffix(".tmp")
    temporary.write_text(attempt.model_dump_json())
    temporary.replace(file)


def kept_attempt(folder: Path, name: str) -> Attempt | None:
    """The last attempt at a run outside the search; None where there was none."""
    file = _file(folder, name)
    return Attempt.model_validate_json(file.read_text()) if file.exists() else None


def _file(folder: Path, name: str) -> Path:
    return folder / "jobs" / f"{name}.json"
