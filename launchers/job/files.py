"""The files in a job's folder: there is nothing else between the controller and a job.

    job.json       what the job has to do
    curve.jsonl    a line for each :meth:`Job.report`, if the function reports
    stop.json      from the controller: the run shall stop at its next report
    cancelled      from the controller: nobody waits for the job any more
    start.json     where and when the job has started, and how fit its node is
    begun          the job's own code runs now; what ended before was not its fault
    report.json    how the job ended; the first one that is written counts

A job that Slurm has requeued works in a folder of its own below, ``restart-1`` and so on, with its
own ``start.json`` and ``curve.jsonl``: what it was before may still run on a node that nobody can
reach. That copy ends, without a report, when it sees that another has taken over.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from carbs.launchers.job.command import Command
from carbs.launchers.job.environment import task
from carbs.launchers.job.protocol import CURVE, STOP, CurvePoint, Result

_BEGUN = "begun"
_CANCELLED = "cancelled"
_JOB = "job.json"
_START = "start.json"
_REPORT = "report.json"


class _Report(BaseModel):
    """How a job ended.

    Attributes:
        attempt: at the trial, from 1, that this was.
        restart: how often Slurm had requeued it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt: int = 1
    restart: int = 0

    def to_json(self) -> str:
        return self.model_dump_json(indent=1, fallback=_plain)


class Finished(_Report):
    """The report of a job whose function returned."""

    kind: Literal["finished"] = "finished"
    result: Result


class Failed(_Report):
    """The report of a job whose function raised.

    Attributes:
        exception: its name; None where the function itself called the configuration a bad one.
        cost: what it has spent, where it says so.
        seconds: that the function has run.
        has_begun: whether it was the function that raised; before, its module could not be loaded.
    """

    kind: Literal["failed"] = "failed"
    reason: str
    cost: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    seconds: float | None = None
    traceback: str
    exception: str | None = None
    has_begun: bool = True


class Unhealthy(_Report):
    """The report of a job that has not begun, because its node is not fit for it.

    Attributes:
        node: its name.
        problems: what was found, a line for each.
    """

    kind: Literal["unhealthy"] = "unhealthy"
    node: str
    problems: list[str]

    @property
    def reason(self) -> str:
        return f"{self.node}: {'; '.join(self.problems)}"


class Stopped(_Report):
    """The report of a job that was stopped at one of its own reports.

    Attributes:
        cost: spent until then.
    """

    kind: Literal["stopped"] = "stopped"
    cost: float = Field(gt=0, allow_inf_nan=False)


JobReport = Finished | Failed | Stopped | Unhealthy


class Start(BaseModel):
    """``start.json``: a job has started.

    Attributes:
        node: that it runs on, or the first of them.
        started: Unix time.
        deadline: Unix time at which the scheduler will kill it; None where it is not known.
        health: what the health check measured; None where there was none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    started: float
    deadline: float | None = None
    job_id: str | None = None
    attempt: int = 1
    restart: int = 0
    health: dict[str, Any] | None = None


def _function_name(name: str) -> str:
    if not re.fullmatch(r"[\w.]+:\w+", name):
        raise ValueError(f"{name!r} is not of the form module:function, such as my_module:train")
    return _FORMER_NAMES.get(name, name)


_FORMER_NAMES = {"launchers.lm.train:train": "carbs.launchers.lm.train:train"}  # until 0.1
FunctionName = Annotated[str, AfterValidator(_function_name)]


class JobFile(BaseModel):
    """``job.json``: all that a job process needs, written before the job is submitted.

    Attributes:
        function: ``module:function``; None where there is a command.
        command: to be run in the first folder of ``python_path``.
        python_path: folders to import the function from, besides the usual ones.
        checkpoint_folder: one for all attempts at a trial; None for one in the job's folder.
        attempt: at the trial, from 1.
        health_folder: where jobs leave what they found of their nodes; None for no health check.
        n_devices: GPUs that were asked for, on each node.
        max_slowdown: times the usual, that the node may be slower.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    function: FunctionName | None = None
    command: Command | None = None
    python_path: list[str]
    params: dict[str, Any]
    seed: int
    settings: dict[str, Any]
    shared_folder: Path
    checkpoint_folder: Path | None = None
    attempt: int = 1
    health_folder: Path | None = None
    n_devices: int | None = None
    max_slowdown: float | None = None


def write_job(folder: Path, job_file: JobFile) -> None:
    """Make a job's folder with its ``job.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / _JOB, job_file.model_dump_json(indent=1))


def read_job(folder: Path) -> JobFile:
    """What the job in this folder has to do.

    Raises:
        OSError, ValueError: nobody has said so, or it cannot be read.
    """
    return JobFile.model_validate_json((folder / _JOB).read_text())


def has_job(folder: Path) -> bool:
    return (folder / _JOB).exists()


def read_report(folder: Path) -> JobReport | None:
    """What the job in this folder has reported; None where it has not, or not yet."""
    try:
        text = (folder / _REPORT).read_text()
    except FileNotFoundError:
        return None
    return _REPORTS.validate_json(text)


_REPORTS: TypeAdapter[JobReport] = TypeAdapter(Annotated[JobReport, Field(discriminator="kind")])


def read_start(folder: Path) -> Start | None:
    """Where the job in this folder has started, or its newest restart; None where it has not."""
    try:
        return Start.model_validate_json((run_folder(folder) / _START).read_text())
    except (FileNotFoundError, ValidationError):
        return None


def mark_begun(folder: Path) -> None:
    """Say that the user's own code runs from now on."""
    (folder / _BEGUN).touch()


def has_begun(folder: Path) -> bool:
    """Whether the user's own code runs, or ran, in the job of this folder."""
    return (run_folder(folder) / _BEGUN).exists()


def run_folder(folder: Path) -> Path:
    """Where the job in this folder works now: there, or in its newest restart's folder."""
    restart = 0
    while (folder / f"restart-{restart + 1}").exists():
        restart += 1
    return folder / f"restart-{restart}" if restart else folder


def read_curve(folder: Path) -> list[CurvePoint]:
    """What the job in this folder has said of its progress so far, in its order.

    A run that was resumed may say some of it again: then the last word counts.
    """
    try:
        text = (folder / CURVE).read_text()
    except FileNotFoundError:
        return []
    # What follows the last line's end is still being written.
    lines = text[: text.rfind("\n") + 1].splitlines()
    curve: list[CurvePoint] = []
    for point in map(CurvePoint.model_validate_json, lines):
        while curve and curve[-1].progress >= point.progress:
            curve.pop()
        curve.append(point)
    return curve


def write_curve(folder: Path, curve: Sequence[CurvePoint]) -> None:
    """Replace what the job in this folder has said: a checkpoint knows what was said before it."""
    if curve or (folder / CURVE).exists():
        _write(folder / CURVE, "".join(point.model_dump_json() + "\n" for point in curve))


def stop(folder: Path) -> None:
    """Ask the job in this folder to stop at its next report."""
    _write(folder / STOP, "{}")
    if run_folder(folder) != folder:
        _write(run_folder(folder) / STOP, "{}")


def mark_cancelled(folder: Path) -> None:
    """Say to the job in this folder that nobody waits for it: it must not ask to go on."""
    (folder / _CANCELLED).touch()


def is_cancelled(folder: Path) -> bool:
    return (folder / _CANCELLED).exists()


def make_run_folder(folder: Path, restart: int) -> Path:
    """Where the job in this folder works in that restart: what was asked of it stands there too."""
    own = folder / f"restart-{restart}" if restart else folder
    own.mkdir(exist_ok=True)
    if own != folder and (folder / STOP).exists():
        _write(own / STOP, "{}")
    return own


def successors(folder: Path, attempt: int, restart: int) -> tuple[Path, ...]:
    """Files of which any says that a copy of the job has ended it or taken it over."""
    key = folder.name.removesuffix(f"-{attempt}")
    return (
        folder / _REPORT,
        folder / f"restart-{restart + 1}",
        folder.with_name(f"{key}-{attempt + 1}") / _START,
    )


def write_start(folder: Path, start: Start) -> None:
    """Say in a job's folder that it has started."""
    own = make_run_folder(folder, start.restart)
    _write(own / _START, start.model_dump_json(indent=1))


def write_report(folder: Path, report: JobReport) -> None:
    """Write how the job in this folder ended, unless another copy or task of it was first."""
    text, rank = report.to_json(), task()[0]
    # Copies and tasks may write at the same time: each has a draft of its own.
    draft = f".{report.restart}-{rank}" if report.restart or rank else ""
    if not (folder / _REPORT).exists():
        _write(folder / _REPORT, text, draft)


def _plain(value: Any) -> Any:
    """What JSON has no word for, among the metrics: arrays as lists, the rest as text."""
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def _write(path: Path, text: str, draft: str = "") -> None:
    """In one step: a reader sees the whole file or none."""
    temporary = path.with_name(f"{path.name}{draft}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
