"""Runs a job: calls the user's function, and reports how that ended, however it ended."""

from __future__ import annotations

import importlib
import math
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from carbs.launchers.job.environment import task
from carbs.launchers.job.files import (
    Failed,
    Finished,
    JobFile,
    JobReport,
    Stopped,
    make_run_folder,
    mark_begun,
    read_job,
    read_report,
    successors,
    write_report,
)
from carbs.launchers.job.protocol import (
    BadConfigurationError,
    CommandFailedError,
    Job,
    KilledError,
    Preempted,
    Result,
    SetupError,
    StoppedEarly,
    TaskLostError,
)

# A task that has failed is given so long to say why, before the others say that it is lost.
_REASON_S = 10.0


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
    job_file = read_job(path)
    own = make_run_folder(path, restart)
    job = Job(
        own,
        job_file.shared_folder,
        job_file.seed,
        job_file.settings,
        job_file.checkpoint_folder or Path(),
        deadline,
        superseded_by=successors(path, job_file.attempt, restart),
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
        report.to_json()  # what cannot be written down is a failure, too
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
            _wait_for_report(path)
        if job.is_superseded():  # how a copy dies that nobody waits for says nothing
            return True
    # Of several tasks the first one speaks, unless another has failed: then all of them do.
    if isinstance(report, Failed) or task()[0] == 0:
        which = {"attempt": job_file.attempt, "restart": restart}
        write_report(path, report.model_copy(update=which))
    if not isinstance(report, Failed) and task()[0] == 0:
        shutil.rmtree(job.checkpoint_folder, ignore_errors=True)
    return True


def _wait_for_report(folder: Path) -> None:
    end = time.monotonic() + _REASON_S
    while read_report(folder) is None and time.monotonic() < end:
        time.sleep(0.1)


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
    from carbs.launchers.job.script import run_script

    folder = next(iter(job_file.python_path), None)
    return partial(run_script, job_file.command, folder=folder)


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
