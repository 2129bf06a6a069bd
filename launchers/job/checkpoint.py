"""Checkpoints: a job that was cut off goes on from its newest one, in another process or node.

A training loop needs three lines for it::

    checkpoints = Checkpoints(job)
    start, state = checkpoints.load()                    # 0 and None at the first attempt
    if state:
        model.load_state_dict(state["model"])
    for step in range(start, n_steps):
        ...
        checkpoints.after_step(step + 1, lambda: {"model": model.state_dict()})

All attempts at a trial share its checkpoint folder, and some may overlap: an orphan on a node that
lost its controller, and its requeued copy. So a file is written under a name of its own and gets
its final one in one step, and that one holds the digest of its bytes::

    step-00001200-6f1ed002ab559585.pt     torch's format, read with ``weights_only=True``

The reference job, whose tensors may lie in shards over several tasks, writes a folder in its place:
see :mod:`carbs.launchers.job.sharded_checkpoint`.

The two newest are kept. The newest whose bytes have the digest that its name says is the one that
counts; with another, the file was cut short or a disk or a memory has flipped bits in it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from carbs.launchers.job.files import read_curve, write_curve
from carbs.launchers.job.protocol import CurvePoint, Job, Preempted

EVERY_S = 600.0
N_KEPT = 2
_NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})(\.pt)?")  # a folder has no suffix
UNFINISHED = ".unfinished"
_ABANDONED_S = 3600  # an unfinished file as old as this has no writer any more


class CheckpointFolder:
    """What all checkpoints of a trial have in common, as one attempt at it sees them.

    Args:
        job: says where they lie, and when one is asked for.
        every_s: seconds between two; 0 for one after each step.

    Attributes:
        n_written: by this attempt.
        failures: why others could not be written, a line for each.
        skipped: what was found unreadable, a line for each.
    """

    def __init__(self, job: Job, every_s: float = EVERY_S) -> None:
        self.job = job
        self.every_s = every_s
        self.n_written = 0
        self.failures: list[str] = []
        self.skipped: list[str] = []
        self._unreadable: set[str] = set()
        self._longest_s = 0.0
        self._last = time.monotonic()

    def preemption(self) -> str | None:
        """As :meth:`Job.preemption`, with the time that the slowest checkpoint took to spare."""
        return self.job.preemption(3 * self._longest_s)

    def is_due(self) -> bool:
        """Whether the last was written, or tried, long enough ago."""
        return time.monotonic() - self._last >= self.every_s

    def _took(self, started: float) -> None:
        self._last = time.monotonic()
        self._longest_s = max(self._longest_s, self._last - started)

    def _failed(self, step: int, error: Exception) -> None:
        line = f"checkpoint at step {step} could not be written, the run goes on: {error}"
        print(line, flush=True)
        self.failures.append(line)

    def _skip(self, path: Path, error: object) -> None:
        line = f"checkpoint {path} is skipped: {error}"
        print(line, flush=True)
        self.skipped.append(line)
        self._unreadable.add(path.name)

    def _remove_old(self, written: Path) -> None:
        folder = self.job.checkpoint_folder
        readable = [p for p in newest_first(folder) if p.name not in self._unreadable]
        kept = {written, *readable[:N_KEPT]}
        old = [path for path in newest_first(folder) if path not in kept]
        abandoned = time.time() - _ABANDONED_S
        for path in folder.glob(f"*{UNFINISHED}"):
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < abandoned:
                    old.append(path)
        for path in old:
            remove(path)


class Checkpoints(CheckpointFolder):
    """The checkpoints of a trial, each a file, as one attempt at it sees them.

    The learning curve that was reported so far is kept with each, and put back by :meth:`load`.

    Args:
        job: says where they lie, and when one is asked for.
        every_s: seconds between two; 0 for one after each step.

    Attributes:
        n_written: by this attempt.
        failures: why others could not be written, a line for each.
        skipped: what :meth:`load` found unreadable, a line for each.
    """

    def load(self) -> tuple[int, dict[str, Any] | None]:
        """The step of the newest readable checkpoint, and its state on the CPU; or 0 and None.

        What is unreadable is printed and stays where it is: it may be this node that reads wrongly.
        """
        tried: set[Path] = set()
        while untried := [p for p in newest_first(self.job.checkpoint_folder) if p not in tried]:
            path = untried[0]
            tried.add(path)
            try:
                content = _read(path)
                curve = [CurvePoint.model_validate(point) for point in content["curve"]]
                step, state = int(content["step"]), dict(content["state"])
            except FileNotFoundError:  # another attempt has written newer ones meanwhile
                continue
            except Exception as error:  # whatever torch says of bytes that are not its own
                self._skip(path, error)
                continue
            write_curve(self.job.folder, curve)
            print(f"resumed at step {step} from {path}", flush=True)
            return step, state
        return 0, None

    def after_step(self, step: int, state: Callable[[], Mapping[str, Any]]) -> None:
        """Write a checkpoint if one is due; to be called after each step.

        Args:
            step: number of steps that are done.
            state: called for the state only where it is written.

        Raises:
            Preempted: the job is to end now. What it wrote is where its next attempt begins.
        """
        reason = self.preemption()
        if reason is not None or self.is_due():
            self.save(step, state())
        if reason is not None:
            raise Preempted(reason)

    def save(self, step: int, state: Mapping[str, Any]) -> bool:
        """Write a checkpoint; whether that succeeded.

        A full disk must not cost the run: what fails is printed, and the older ones stay.

        Args:
            step: number of steps that are done.
            state: tensors and plain values, in mappings and lists: what ``torch.load`` reads with
                ``weights_only=True``.

        Raises:
            TypeError: the state holds something else. Told at the first, not when it is needed.
        """
        started = time.monotonic()
        curve = [point.model_dump() for point in read_curve(self.job.folder)]
        content = {"step": step, "curve": curve, "state": dict(state)}
        folder = self.job.checkpoint_folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            written = _write(folder, step, content)
        except OSError as error:
            self._failed(step, error)
            return False
        finally:
            self._took(started)
        self.n_written += 1
        if self.n_written == 1:
            _try_to_read(written)
        self._remove_old(written)
        return True


def last_step(folder: Path) -> int:
    """The step of the newest checkpoint in a folder by its name, unread; 0 where there is none.

    It rises from attempt to attempt as long as a trial makes progress.
    """
    return max((_step(path) for path in newest_first(folder)), default=0)


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints in a folder, by their names."""
    try:
        found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except FileNotFoundError:
        return []
    return sorted(found, key=lambda path: (_step(path), path.name), reverse=True)


def _step(path: Path) -> int:
    named = _NAME.fullmatch(path.name)
    assert named is not None
    return int(named[1])


def name_of(step: int, digest: str) -> str:
    """The final name of a checkpoint that is a folder, from the hexadecimal digest of its bytes."""
    return f"step-{step:08d}-{digest[:16]}"


def remove(path: Path) -> None:
    """A checkpoint or an unfinished one; whoever else has removed it meanwhile is welcome."""
    with contextlib.suppress(OSError):
        if path.is_dir():  # under another name first: half a checkpoint is none
            shutil.rmtree(path.rename(path.with_suffix(UNFINISHED)), ignore_errors=True)
        else:
            path.unlink()


def _read(path: Path) -> dict[str, Any]:
    import torch  # not every training function needs it

    named = _NAME.fullmatch(path.name)
    assert named is not None
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        if digest != named[2]:
            raise ValueError(f"its {file.tell()} bytes are not those that were written")
        file.seek(0)
        content = torch.load(file, map_location="cpu", weights_only=True)
    return dict(content)


def _try_to_read(path: Path) -> None:
    try:
        _read(path)
    except pickle.UnpicklingError as error:
        path.unlink(missing_ok=True)
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise TypeError(
            "a checkpoint must hold tensors and plain Python values only, such as float(loss) in "
            f"place of a NumPy scalar; this one needs {found[1] if found else 'more than that'}"
        ) from None
    except (OSError, ValueError):  # the disk's fault: the next attempt will say so
        pass


def _write(folder: Path, step: int, content: Mapping[str, Any]) -> Path:
    import torch

    unfinished = folder / f"{uuid.uuid4().hex}{UNFINISHED}"
    try:
        with unfinished.open("xb") as file:
            writer = _Writer(file)
            torch.save(content, writer)  # type: ignore[arg-type]  # it asks for no more than these
            if writer.error is not None:
                raise writer.error
            file.flush()
            os.fsync(file.fileno())
        path = folder / f"step-{step:08d}-{writer.digest.hexdigest()[:16]}.pt"
        unfinished.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    sync(folder)
    return path


def sync(folder: Path) -> None:
    """Make the names in a folder outlive a power cut, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class _Writer:
    """A file that knows its digest, and keeps its error for later: torch loses it on the way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            self.digest.update(data)
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        pass
