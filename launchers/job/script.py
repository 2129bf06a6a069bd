"""The user's script in place of a training function: start it, listen to it, end it.

The script need not know of carbs. What it says in JSON, a line for each, is heard on its standard
output and in two files, whose names it finds in its environment:

    CARBS_PROGRESS           {"progress": 0.2, "output": 3.1, "cost": 40}, or in place of
                             ``progress`` {"step": 200, "n_steps": 1000}: its learning curve
    CARBS_RESULT             {"output": 2.9, "cost": 180}: its result, the last line counts;
                             {"failure": "loss is NaN", "cost": 12}: it could not be trained
    CARBS_FOLDER             the job's own folder
    CARBS_CHECKPOINT_FOLDER  the same in every attempt at this trial
    CARBS_SHARED_FOLDER      the same in every job of the sweep
    CARBS_SEED               of the trial
    CARBS_DEADLINE           Unix time at which the scheduler kills the job, where that is known

Without a cost the seconds count that the script has run, with those before a preemption where it
goes on from a checkpoint. Whatever else a result holds is kept among the metrics.

The script has a process group of its own. What it has started and left behind is killed when it
ends; where this process dies, the script does.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import psutil

from carbs.launchers.job.command import Command
from carbs.launchers.job.environment import task
from carbs.launchers.job.protocol import (
    BadConfigurationError,
    CommandFailedError,
    Job,
    KilledError,
    Preempted,
    SetupError,
    StoppedEarly,
)

# Between the request to end and the end by force.
STOP_GRACE_S = 10.0
_LOOK_EVERY_S = 0.1
_N_LINES = 40
_SECONDS = "seconds"  # a file of a job that was preempted: how long the run has taken until then
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_SETUP = re.compile(
    r"^(ModuleNotFoundError|ImportError|SyntaxError|IndentationError|TabError): |"
    r"can't open file '.*': \[Errno 2\]",
)


def run_script(
    command: Command, params: Mapping[str, Any], job: Job, *, folder: str | None = None
) -> dict[str, Any]:
    """Run the script of a trial to its end; returns its result as a mapping.

    Args:
        command: to be filled in.
        params: of the trial.
        job: as a training function would be given it.
        folder: in which it runs; None for the working directory.

    Raises:
        StoppedEarly, Superseded: as ``job`` has it; the script has been ended.
        Preempted: the machine is taken away, and the script has ended by that.
        BadConfigurationError: the script says so, or its output is not finite.
        CommandFailedError: by its exit code.
        KilledError: by a signal.
        SetupError: it cannot be started, or lacks a module.
        TypeError: it has said no result.
    """
    started = time.monotonic() - _seconds_before(job)
    is_first = task()[0] == 0
    ears = _Ears(job.folder)
    if is_first:
        ears.forget()
    words = command.filled(params, _extras(job, params))
    is_told = False
    last: _Said | None = None

    def spent(said: _Said) -> Any:
        if "cost" in said.values:
            return said.values["cost"]
        if command.measures_cost:
            return said.time - started
        raise TypeError(
            f"no cost in {json.dumps(said.values)}: only seconds are measured, and the sweep's "
            "cost_unit is another"
        )

    def report() -> _Said | None:
        said = None
        for said in list(ears.new_points()):
            if not is_first:
                continue
            with suppress(StoppedEarly) if ears.has_result() else nullcontext():
                job.report(said.progress or 0.0, float(said.values["output"]), float(spent(said)))
        return said

    with _running(words, folder, _environment(job), ears) as process:
        while process.poll() is None:
            ears.listen(_LOOK_EVERY_S)
            last = report() or last
            # It may say nothing for long; but whoever has said its result is only about to end.
            if last is not None and not ears.has_result() and job.should_stop():
                raise StoppedEarly(float(spent(replace(last, time=time.monotonic()))))
            if job.preemption() is not None and not is_told:
                is_told = _announce(psutil.Process(process.pid))
    with suppress(StoppedEarly):  # it has come to its end all the same
        report()
    code = process.returncode
    if code == 0 and not is_first:
        return {"output": 0.0, "cost": 1.0}  # the first task speaks for all
    said = ears.result()
    if said is not None and "failure" in said.values:
        raise BadConfigurationError(str(said.values["failure"]), spent(said))
    if code == 0 and said is not None:
        return _result(said.values, spent(said))
    if _is_preempted(job, code, is_told):
        (job.folder / _SECONDS).write_text(str(time.monotonic() - started))
        raise Preempted(str(job.preemption()))
    if code == 0:
        raise TypeError(
            "the command ended without a result: its last JSON line on the standard output, or in "
            'the file that CARBS_RESULT names, must be such as {"output": 1.2, "cost": 30.0}'
        )
    raise _failure(code, ears)


def _extras(job: Job, params: Mapping[str, Any]) -> dict[str, str]:
    file = job.folder / "params.json"
    draft = file.with_suffix(f".{task()[0]}.tmp")  # each task of the job writes it
    draft.write_text(json.dumps(dict(params), indent=1))
    draft.replace(file)
    job.checkpoint_folder.mkdir(parents=True, exist_ok=True)
    return {
        "params_file": str(file),
        "seed": str(job.seed),
        "folder": str(job.folder),
        "checkpoints": str(job.checkpoint_folder),
        "shared": str(job.shared_folder),
        "python": sys.executable,
    }


def _environment(job: Job) -> dict[str, str]:
    return {
        **os.environ,
        # What it says must be heard while it runs.
        "PYTHONUNBUFFERED": "1",
        "CARBS_RESULT": str(job.folder / _Ears.RESULT),
        "CARBS_PROGRESS": str(job.folder / _Ears.PROGRESS),
        "CARBS_FOLDER": str(job.folder),
        "CARBS_CHECKPOINT_FOLDER": str(job.checkpoint_folder),
        "CARBS_SHARED_FOLDER": str(job.shared_folder),
        "CARBS_SEED": str(job.seed),
        **({} if job.deadline is None else {"CARBS_DEADLINE": f"{job.deadline:.0f}"}),
    }


def _result(said: Mapping[str, Any], cost: Any) -> dict[str, Any]:
    given = said.get("metrics", {})
    metrics = given if isinstance(given, dict) else {"metrics": given}
    others = {key: said[key] for key in said if key not in ("output", "cost", "metrics")}
    return {"output": said["output"], "cost": cost, "metrics": metrics | others}


def _seconds_before(job: Job) -> float:
    """What the attempt that left the checkpoint had run by then, and those before it."""
    if not job.checkpoint_folder.is_dir() or not any(job.checkpoint_folder.iterdir()):
        return 0.0
    folder = job.folder.parent if job.folder.name.startswith("restart-") else job.folder
    key = folder.name.rpartition("-")[0]
    files = [*folder.parent.glob(f"{key}-*/{_SECONDS}")]
    files += folder.parent.glob(f"{key}-*/restart-*/{_SECONDS}")
    return max((float(file.read_text()) for file in files), default=0.0)


def _is_preempted(job: Job, code: int, is_told: bool) -> bool:
    """Whether the script has ended because the machine is taken away."""
    if _signal_of(code) in (signal.SIGTERM, signal.SIGUSR2):
        is_told = True  # Slurm sends its signal to the script and to us, in whatever order
        end = time.monotonic() + 1
        while job.preemption() is None and time.monotonic() < end:
            time.sleep(0.02)
    return is_told and job.preemption() is not None


def _failure(code: int, ears: _Ears) -> Exception:
    number = _signal_of(code)
    lines = ears.last_lines()
    if number is not None:
        return KilledError(f"the command was killed by {number.name}")
    said = next((line for line in reversed(lines) if line.strip()), "")
    reason = f"exit code {code}" + (f": {said.strip()}" if said else "")
    if code in (126, 127) or _SETUP.search(said):
        return SetupError(reason)
    return CommandFailedError(reason, "\n".join(lines))


def _signal_of(code: int) -> signal.Signals | None:
    """The signal that has ended a process, or by a shell's account the one within it."""
    with suppress(ValueError):
        return signal.Signals(-code if code < 0 else code - 128)
    return None


@dataclass(frozen=True)
class _Said:
    """A JSON object with an output or a failure.

    Attributes:
        time: when it was heard, as ``time.monotonic``.
        progress: of a point of the learning curve; None where it is none.
    """

    values: dict[str, Any]
    time: float
    progress: float | None = None


class _Ears:
    """What a script says, as it comes.

    Args:
        folder: of its two files.
    """

    RESULT = "result.json"
    PROGRESS = "progress.jsonl"

    def __init__(self, folder: Path) -> None:
        self._result_file = folder / self.RESULT
        self._progress_file = folder / self.PROGRESS
        self._read_up_to = 0
        self._lines: queue.SimpleQueue[tuple[str, float]] = queue.SimpleQueue()
        self._points: list[_Said] = []
        self._last: _Said | None = None
        self._is_last_result = False
        self._errors: deque[str] = deque(maxlen=_N_LINES)
        self._outputs: deque[str] = deque(maxlen=_N_LINES)
        self._has_warned = False

    def forget(self) -> None:
        """Remove what a start before this one has left in the files."""
        for file in (self._result_file, self._progress_file):
            file.unlink(missing_ok=True)

    def hear(self, line: str, is_error: bool) -> None:
        """A line of output, or of errors; called in threads."""
        (self._errors if is_error else self._outputs).append(line)
        if not is_error and line.startswith("{"):
            self._lines.put((line, time.monotonic()))

    def listen(self, for_s: float) -> None:
        """Wait for something to be said."""
        with suppress(queue.Empty):
            self._take(*self._lines.get(timeout=for_s))

    def new_points(self) -> Iterator[_Said]:
        """What is new of the learning curve."""
        is_last_result = self._is_last_result  # what stands in a file may be older than the result
        for line in self._new_lines():
            self._take(line, time.monotonic())
        self._is_last_result |= is_last_result
        while not self._lines.empty():
            self._take(*self._lines.get())
        # Nobody knows in which order it was said in two places.
        self._points.sort(key=lambda point: point.progress or 0.0)
        while self._points:
            yield self._points.pop(0)

    def has_result(self) -> bool:
        """Whether it has said a result, and no point of a learning curve after that."""
        return self._is_last_result or self._result_file.exists()

    def result(self) -> _Said | None:
        """The last result that was said; that in the file counts."""
        try:
            text = self._result_file.read_text(errors="replace")
        except OSError:
            return self._last
        for words in (text, *reversed(text.splitlines())):  # one object, or one a line
            values = _values(words)
            if values is not None:
                return _Said(values, time.monotonic())
        return self._last

    def last_lines(self) -> list[str]:
        """Of the newest traceback, or of what was said last."""
        lines = list(self._errors) or list(self._outputs)
        heads = [i for i, line in enumerate(lines) if line.startswith("Traceback (most recent")]
        return lines[heads[-1] :] if heads else lines[-5:]

    def _new_lines(self) -> list[str]:
        try:
            with self._progress_file.open("rb") as file:
                file.seek(self._read_up_to)
                new = file.read()
        except OSError:
            return []
        whole = new[: new.rfind(b"\n") + 1]  # what follows is still being written
        self._read_up_to += len(whole)
        return whole.decode(errors="replace").splitlines()

    def _take(self, line: str, at: float) -> None:
        values = _values(line)
        if values is None:
            return
        progress = _progress(values)
        if progress is not None and 0 < progress <= 1:
            self._points.append(_Said(values, at, progress))
        elif progress is not None or "step" in values:
            self._warn()
        self._is_last_result = "step" not in values if progress is None else progress >= 1
        if progress is None or progress >= 1:  # the end of the curve is a result as well
            self._last = _Said(values, at)

    def _warn(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            print(
                'carbs: a point of the learning curve needs "progress" in (0, 1], or "step" and '
                '"n_steps", and is left out',
                file=sys.stderr,
            )


def _values(text: str) -> dict[str, Any] | None:
    """A JSON object that has an output, or says why there is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and {"output", "failure"} & set(found) else None


def _progress(said: Mapping[str, Any]) -> float | None:
    with suppress(TypeError, ValueError, ZeroDivisionError):
        if "progress" in said:
            return float(said["progress"])
        if "step" in said and "n_steps" in said:
            return float(said["step"]) / float(said["n_steps"])
    return None


@contextmanager
def _running(
    words: list[str], folder: str | None, environment: dict[str, str], ears: _Ears
) -> Iterator[subprocess.Popen[bytes]]:
    """The script; when the block ends, nothing of it is left."""
    us = psutil.Process()
    before = set(us.children(recursive=True))
    with _adopting_orphans():
        try:
            process = subprocess.Popen(
                words,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,
                preexec_fn=_child_setup(),
            )
        except OSError as error:
            raise SetupError(f"cannot start {words[0]!r}: {error.strerror}") from None
        assert process.stdout is not None and process.stderr is not None
        threads = [
            threading.Thread(target=_echo, args=(stream, fd, ears), daemon=True)
            for fd, stream in ((1, process.stdout), (2, process.stderr))
        ]
        for thread in threads:
            thread.start()
        try:
            yield process
        finally:
            if process.poll() is None:
                _end(process)
            left = [child for child in us.children(recursive=True) if child not in before]
            for child in left:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            process.wait()
            psutil.wait_procs(left, timeout=STOP_GRACE_S)
            for thread in threads:
                thread.join(timeout=STOP_GRACE_S)


def _echo(stream: IO[bytes], fd: int, ears: _Ears) -> None:
    """Pass lines on to the job's own log."""
    (sys.stdout if fd == 1 else sys.stderr).flush()
    for line in stream:
        with suppress(OSError):
            os.write(fd, line)
        ears.hear(line.decode(errors="replace").strip("\r\n"), fd == 2)
    stream.close()


def _end(process: subprocess.Popen[bytes]) -> None:
    """As a scheduler does: ask all of its processes to end, and wait; the rest is killed."""
    root = psutil.Process(process.pid)
    for member in [root, *root.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_GRACE_S)


def _announce(process: psutil.Process) -> bool:
    """Tell whoever has asked to be told by SIGTERM; it would only kill the others before time.

    Below one that listens none is told: a launcher sees to its workers.

    Returns:
        Whether anybody was told.
    """
    is_told = False
    with suppress(psutil.Error):
        if _catches_sigterm(process.pid):
            process.send_signal(signal.SIGTERM)
            return True
        for child in process.children():
            is_told = _announce(child) or is_told
    return is_told


def _catches_sigterm(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # no Linux: nobody can say
        return True
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)", status, re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def _child_setup() -> Callable[[], None]:
    """For the child, before it becomes the script: it dies with us, and blocks no signal.

    Slurm announces an end by SIGUSR2 to all processes of a job, which would kill those that know
    nothing of it: to them it is nothing, unless they ask for it.
    """
    prctl = _prctl()

    def set_up() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())

    return set_up


@contextmanager
def _adopting_orphans() -> Iterator[None]:
    """What a script's processes leave behind becomes our child, so that it can be found."""
    prctl = _prctl()
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        prctl(_PR_SET_CHILD_SUBREAPER, 0)


def _prctl() -> Callable[[int, int], Any]:
    """Linux's; elsewhere nothing."""
    if not sys.platform.startswith("linux"):
        return lambda option, value: None
    library = ctypes.CDLL(None)
    return lambda option, value: library.prctl(option, value, 0, 0, 0)
