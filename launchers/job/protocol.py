"""The job protocol: what a training function is given, and what it gives back.

A training function is any importable ``train(params, job)``. It returns a :class:`Result`, or a
mapping with ``output``, ``cost`` and maybe ``metrics``. An exception is a failure of the
configuration; :class:`BadConfigurationError` gives it a reason in plain words and what it cost. A
command may stand in its place: see :mod:`carbs.launchers.job.script`.

Between the controller and a job there are these files in the job's folder, and nothing else:

    job.json       what the job has to do
    curve.jsonl    a line for each :meth:`Job.report`, if the function reports
    stop.json      from the controller: the run shall stop at its next report
    start.json     where and when the job has started, and how fit its node is
    begun          the job's own code runs now; what ended before was not its fault
    report.json    how the job ended; the first one that is written counts

A job that Slurm has requeued works in a folder of its own below, ``restart-1`` and so on, with its
own ``start.json`` and ``curve.jsonl``: what it was before may still run on a node that nobody can
reach. That copy ends, without a report, when it sees that another has taken over.

Where the scheduler takes the machine away, by SIGTERM, SIGUSR2 or a time limit, a job that was
preempted writes no report: its next attempt goes on from what it left in the checkpoint folder, for
which there is :mod:`carbs.launchers.job.checkpoint`.

A job of several tasks runs the function in each. The report is that of the first task, or of
whichever failed first.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from carbs.launchers.job.command import Command

_BEGUN = "begun"
_CURVE = "curve.jsonl"
_STOP = "stop.json"
_START = "start.json"
_REPORT_FILE = "report.json"
_RUN_COMMAND = "carbs.launchers.job.script:run_script"  # loaded as a user's function is


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


# How often a job looks whether another copy of it has taken over.
_LOOK_EVERY_S = 1.0
# Seconds before the deadline at which a job is to end; less where it has little time in all.
DEADLINE_MARGIN_S = 60.0


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
        with (self.folder / _CURVE).open("a") as file:
            file.write(point.model_dump_json() + "\n")
        if progress < 1 and self.should_stop():
            raise StoppedEarly(cost)

    def should_stop(self) -> bool:
        """Whether the controller has decided to stop the run; :meth:`report` says so by itself."""
        return (self.folder / _STOP).exists()

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


class _Report(BaseModel):
    """How a job ended.

    Attributes:
        attempt: at the trial, from 1, that this was.
        restart: how often Slurm had requeued it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    attempt: int = 1
    restart: int = 0


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
    _write(folder / "job.json", job_file.model_dump_json(indent=1))


def read_report(folder: Path) -> JobReport | None:
    """What the job in this folder has reported; None where it has not, or not yet."""
    try:
        text = (folder / _REPORT_FILE).read_text()
    except FileNotFoundError:
        return None
    return _REPORT.validate_json(text)


_REPORT: TypeAdapter[JobReport] = TypeAdapter(Annotated[JobReport, Field(discriminator="kind")])


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
        text = (folder / _CURVE).read_text()
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
    if curve or (folder / _CURVE).exists():
        _write(folder / _CURVE, "".join(point.model_dump_json() + "\n" for point in curve))


def stop(folder: Path) -> None:
    """Ask the job in this folder to stop at its next report."""
    _write(folder / _STOP, "{}")
    if run_folder(folder) != folder:
        _write(run_folder(folder) / _STOP, "{}")


def run(folder: str, deadline: float | None = None, restart: int = 0) -> bool:
    """Run the job in this folder and write its ``report.json``. Called in the job's own process.

    Where the folder already has a report, as after a requeue that came too late, nothing is run.

    Args:
        folder: with a ``job.json``.
        deadline: Unix time at which the scheduler will kill the process, where that is known.
        restart: how often the scheduler has requeued the job.

    Returns:
        Whether that is all: a report is there, or another copy of the job sees to it. Otherwise the
        job was preempted and asks to be started again.

    Raises:
        KilledError: a command was killed by a signal; there is no report.
    """
    path = Path(folder)
    if read_report(path) is not None:
        return True
    job_file = JobFile.model_validate_json((path / "job.json").read_text())
    own = path / f"restart-{restart}" if restart else path
    own.mkdir(exist_ok=True)
    if (path / _STOP).exists() and own != path:
        _write(own / _STOP, "{}")
    job = Job(
        own,
        job_file.shared_folder,
        job_file.seed,
        job_file.settings,
        job_file.checkpoint_folder or Path(),
        deadline,
        superseded_by=_successors(path, job_file.attempt, restart),
    )
    report: JobReport
    is_begun = False
    started = time.monotonic()
    try:
        function = _function(job_file)
        is_begun = True
        mark_begun(own)
        started = time.monotonic()
        with _requests_by_signal(job):
            report = Finished(result=_result(function(job_file.params, job)))
        _dump(report)  # what cannot be written down is a failure, too
    except StoppedEarly as stopped:
        report = Stopped(cost=stopped.cost)
    except Preempted as preempted:
        print(f"preempted: {preempted}", file=sys.stderr)
        return job.is_superseded()
    except KilledError:
        raise  # for the controller to judge
    except Exception as error:
        seconds = time.monotonic() - started
        failed = _failed(error, is_begun and not isinstance(error, SetupError))
        report = failed.model_copy(update={"seconds": seconds})
        print(failed.traceback, file=sys.stderr)
        if isinstance(error, TaskLostError):
            _wait_for(path / _REPORT_FILE, _REASON_S)
        if job.is_superseded():  # how a copy dies that nobody waits for says nothing
            return True
    # Of several tasks the first one speaks, unless another has failed: then all of them do.
    if isinstance(report, Failed) or task()[0] == 0:
        write_report(path, report.model_copy(update=_of_attempt(job_file, restart)))
    if not isinstance(report, Failed) and task()[0] == 0:
        shutil.rmtree(job.checkpoint_folder, ignore_errors=True)
    return True


def _successors(path: Path, attempt: int, restart: int) -> tuple[Path, ...]:
    """Files of which any says that a copy of the job has ended it or taken it over."""
    key = path.name.removesuffix(f"-{attempt}")
    return (
        path / _REPORT_FILE,
        path / f"restart-{restart + 1}",
        path.with_name(f"{key}-{attempt + 1}") / _START,
    )


def _of_attempt(job_file: JobFile, restart: int) -> dict[str, int]:
    return {"attempt": job_file.attempt, "restart": restart}


def write_start(folder: Path, start: Start) -> None:
    """Say in a job's folder that it has started."""
    own = folder / f"restart-{start.restart}" if start.restart else folder
    own.mkdir(exist_ok=True)
    _write(own / _START, start.model_dump_json(indent=1))


def write_report(folder: Path, report: JobReport) -> None:
    """Write how the job in this folder ended, unless another copy or task of it was first."""
    text = _dump(report)
    rank = task()[0]
    # Copies and tasks may write at the same time: each has a draft of its own.
    draft = f".{report.restart}-{rank}" if report.restart or rank else ""
    if not (folder / _REPORT_FILE).exists():
        _write(folder / _REPORT_FILE, text, draft)


def _dump(report: JobReport) -> str:
    return report.model_dump_json(indent=1, fallback=_plain)


# A task that has failed is given so long to say why, before the others say that it is lost.
_REASON_S = 10.0


def _wait_for(path: Path, for_s: float) -> None:
    end = time.monotonic() + for_s
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.1)


def task(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Which task of its job this process is, from 0, and how many there are.

    As submitit, torchrun or Slurm's srun say; a process that none of them has started is alone.
    """
    for rank, size in _TASKS:
        if rank in environment and size in environment:
            return int(environment[rank]), int(environment[size])
    return 0, 1


# Not SLURM_NTASKS: it is there in a batch script as well, which is one process.
_TASKS = (
    ("SUBMITIT_LOCAL_GLOBALID", "SUBMITIT_LOCAL_NTASKS"),
    ("RANK", "WORLD_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


@contextmanager
def _requests_by_signal(job: Job) -> Iterator[None]:
    """What a scheduler sends ahead of the end asks for a checkpoint; elsewhere it would kill.

    A second SIGTERM does what it would have done without us.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python allows handlers only there
        return
    numbers = (signal.SIGTERM, signal.SIGUSR2)
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers}

    def request(number: int, _: Any) -> None:
        job.request_checkpoint(signal.Signals(number).name)
        if number == signal.SIGTERM:
            signal.signal(number, before[signal.SIGTERM])

    for number in numbers:
        signal.signal(number, request)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, before[number])


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


def _failed(error: Exception, has_begun: bool) -> Failed:
    """The report on an exception, in words that any file can hold."""
    if isinstance(error, CommandFailedError):
        reason, log = _printable(error.reason[:300]), _printable(error.log)
        return Failed(reason=reason, traceback=log, exception=type(error).__name__)
    cost = None
    name = None if isinstance(error, BadConfigurationError) else type(error).__name__
    if isinstance(error, BadConfigurationError):
        reason = str(error.reason)
        given = error.cost
        if isinstance(given, (int, float)) and math.isfinite(given) and given >= 0:
            cost = float(given)
    else:
        first_line = (str(error).splitlines() or [""])[0]
        is_ours = isinstance(error, SetupError)
        reason = (first_line if is_ours else f"{name}: {first_line}")[:300]
    trace = _printable("".join(traceback.format_exception(error)))
    return Failed(
        reason=_printable(reason),
        cost=cost,
        traceback=trace,
        exception=name,
        has_begun=has_begun,
    )


def _printable(text: str) -> str:
    """Without lone surrogates, which UTF-8 has no bytes for."""
    return text.encode(errors="backslashreplace").decode()


def _function(job_file: JobFile) -> Callable[..., Any]:
    """What the job is to call with its parameters and its :class:`Job`."""
    if job_file.command is None:
        assert job_file.function is not None
        return load_function(job_file.function, job_file.python_path)
    folder = next(iter(job_file.python_path), None)
    return partial(load_function(_RUN_COMMAND), job_file.command, folder=folder)


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


def _write(path: Path, text: str, draft: str = "") -> None:
    """In one step: a reader sees the whole file or none."""
    temporary = path.with_name(f"{path.name}{draft}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
