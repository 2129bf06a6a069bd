"""The job protocol: what a training function is given, and what it gives back.

A training function is any importable ``train(params, job)``. It returns a :class:`Result`, or a
mapping with ``output``, ``cost`` and maybe ``metrics``. An exception is a failure of the
configuration; :class:`BadConfigurationError` gives it a reason in plain words and what it cost.

Between the controller and a job there are these files in the job's folder, and nothing else:

    job.json       what the job has to do
    curve.jsonl    a line for each :meth:`Job.report`, if the function reports
    stop.json      from the controller: the run shall stop at its next report
    report.json    how the job ended
"""

from __future__ import annotations

import importlib
import math
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

_CURVE = "curve.jsonl"
_STOP = "stop.json"


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


@dataclass(frozen=True)
class Job:
    """What a training function is given besides its parameters.

    Attributes:
        folder: this attempt's own folder, for logs and scratch.
        shared_folder: one folder for all jobs of the sweep, for prepared data. Jobs run at the
            same time: whoever writes here takes a lock.
        seed: the seed of this trial; the same in every attempt at it.
        settings: the ``settings`` of the sweep file, for the function alone to interpret.
    """

    folder: Path
    shared_folder: Path
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    def report(self, progress: float, output: float, cost: float) -> None:
        """Tell how the run goes, some ten times along it, so that a hopeless one can be stopped.

        Args:
            progress: share of the run that is done, in (0, 1], rising from report to report.
            output: the objective now, or what goes along with it, such as a mean training loss.
            cost: what the run has spent so far, in the sweep's unit of cost.

        Raises:
            StoppedEarly: the controller has decided to stop the run.
            BadConfigurationError: the output is not finite.
            ValueError: the progress or the cost is out of its range.
        """
        if not 0 < progress <= 1:
            raise ValueError(f"progress is {progress}, expected a share of the run in (0, 1]")
        if not 0 < cost < math.inf:
            raise ValueError(f"cost is {cost}, expected a positive, finite number")
        if not math.isfinite(output):
            raise BadConfigurationError(f"output is {output} at progress {progress:g}", cost)
        point = CurvePoint(progress=progress, output=output, cost=cost)
        with (self.folder / _CURVE).open("a") as file:
            file.write(point.model_dump_json() + "\n")
        if (self.folder / _STOP).exists():
            raise StoppedEarly(cost)


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


class Finished(BaseModel):
    """The report of a job whose function returned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["finished"] = "finished"
    result: Result


class Failed(BaseModel):
    """The report of a job whose function raised."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["failed"] = "failed"
    reason: str
    cost: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    traceback: str


class Stopped(BaseModel):
    """The report of a job that was stopped at one of its own reports.

    Attributes:
        cost: spent until then.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["stopped"] = "stopped"
    cost: float = Field(gt=0, allow_inf_nan=False)


JobReport = Finished | Failed | Stopped


class JobFile(BaseModel):
    """``job.json``: all that a job process needs, written before the job is submitted.

    Attributes:
        function: ``module:function``.
        python_path: folders to import it from, besides the usual ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    function: str
    python_path: list[str]
    params: dict[str, Any]
    seed: int
    settings: dict[str, Any]
    shared_folder: Path


def write_job(folder: Path, job_file: JobFile) -> None:
    """Make a job's folder with its ``job.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "job.json", job_file.model_dump_json(indent=1))


def read_report(folder: Path) -> JobReport | None:
    """What the job in this folder has reported; None where it has not, or not yet."""
    try:
        text = (folder / "report.json").read_text()
    except FileNotFoundError:
        return None
    return _REPORT.validate_json(text)


_REPORT: TypeAdapter[JobReport] = TypeAdapter(Annotated[JobReport, Field(discriminator="kind")])


def read_curve(folder: Path) -> list[CurvePoint]:
    """What the job in this folder has said of its progress so far."""
    try:
        text = (folder / _CURVE).read_text()
    except FileNotFoundError:
        return []
    # What follows the last line's end is still being written.
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [CurvePoint.model_validate_json(line) for line in lines]


def stop(folder: Path) -> None:
    """Ask the job in this folder to stop at its next report."""
    _write(folder / _STOP, "{}")


def run(folder: str) -> None:
    """Run the job in this folder and write its ``report.json``. Called in the job's own process."""
    path = Path(folder)
    job_file = JobFile.model_validate_json((path / "job.json").read_text())
    report: JobReport
    try:
        function = load_function(job_file.function, job_file.python_path)
        job = Job(path, job_file.shared_folder, job_file.seed, job_file.settings)
        report = Finished(result=_result(function(job_file.params, job)))
        text = report.model_dump_json(indent=1, fallback=_plain)
    except StoppedEarly as stopped:
        text = Stopped(cost=stopped.cost).model_dump_json(indent=1)
    except Exception as error:
        report = _failed(error)
        text = report.model_dump_json(indent=1)
        print(report.traceback, file=sys.stderr)
    _write(path / "report.json", text)


def _result(returned: Any) -> Result:
    try:
        result = Result.model_validate(returned)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(str(part) for part in detail['loc']) or 'result'}: {detail['msg']}"
            for detail in error.errors()
        )
        raise TypeError(
            f"the function must return output, cost and maybe metrics, but {problems}"
        ) from None
    if not math.isfinite(result.output):
        raise BadConfigurationError(f"output is {result.output}", cost=result.cost)
    return result


def _plain(value: Any) -> Any:
    """What JSON has no word for, among the metrics: arrays as lists, the rest as text."""
    return value.tolist() if hasattr(value, "tolist") else repr(value)


def _failed(error: Exception) -> Failed:
    """The report on an exception, in words that any file can hold."""
    cost = None
    if isinstance(error, BadConfigurationError):
        reason = str(error.reason)
        given = error.cost
        if isinstance(given, (int, float)) and math.isfinite(given) and given >= 0:
            cost = float(given)
    else:
        first_line = (str(error).splitlines() or [""])[0]
        reason = f"{type(error).__name__}: {first_line}"[:300]
    trace = "".join(traceback.format_exception(error))
    return Failed(reason=_printable(reason), cost=cost, traceback=_printable(trace))


def _printable(text: str) -> str:
    """Without lone surrogates, which UTF-8 has no bytes for."""
    return text.encode(errors="backslashreplace").decode()


def load_function(name: str, python_path: Sequence[str] = ()) -> Callable[..., Any]:
    """Import ``module:function``.

    Raises:
        ImportError: the module cannot be imported or has no such function.
    """
    sys.path[:0] = [folder for folder in python_path if folder not in sys.path]
    module_name, _, function_name = name.partition(":")
    function = getattr(importlib.import_module(module_name), function_name, None)
    if not callable(function):
        raise ImportError(f"module {module_name!r} has no function {function_name!r}")
    return cast(Callable[..., Any], function)


def _write(path: Path, text: str) -> None:
    """In one step: a reader sees the whole file or none."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
