"""Checkpoints of tensors that lie in shards over several tasks, written while training goes on.

``torch.distributed.checkpoint`` writes them as safetensors, each task its own shards, and reads
them with another number of tasks. A checkpoint is a folder::

    step-00001200-6f1ed002ab559585/      the digest of all its bytes
        shard-00001-....safetensors      tensors of the first task
        state.json                       the step, plain values, and the learning curve so far

It is written under a name of its own and gets its final one in one step; otherwise the rules are
those of :mod:`carbs.launchers.job.checkpoint`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from carbs.launchers.job.checkpoint import (
    EVERY_S,
    UNFINISHED,
    CheckpointFolder,
    name_of,
    newest_first,
    remove,
    sync,
)
from carbs.launchers.job.distributed import World
from carbs.launchers.job.files import read_curve, write_curve
from carbs.launchers.job.protocol import CurvePoint, Job, Preempted

_STATE = "state.json"
_DUE, _PREEMPTED = 1.0, 2.0

State = tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]  # tensors, and what JSON can hold


class ShardedCheckpoints(CheckpointFolder):
    """The checkpoints of a trial, each a folder. Every task of the job makes every call.

    Args:
        job: says where they lie, and when one is asked for.
        world: the tasks.
        every_s: seconds between two; 0 for one after each step.
        in_background: whether training goes on while one is written; its tensors are copied first.

    Attributes:
        n_written: by this attempt.
        failures: why others could not be written, a line for each.
        skipped: what :meth:`load` found unreadable, a line for each.
    """

    def __init__(
        self, job: Job, world: World, every_s: float = EVERY_S, *, in_background: bool = True
    ) -> None:
        super().__init__(job, every_s)
        self._world = world
        self._in_background = in_background
        # What is written talks among the tasks while training does.
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._written: Future[None] | None = None
        self._reason = ""

    def load(self, tensors: Mapping[str, torch.Tensor]) -> tuple[int, dict[str, Any] | None]:
        """Fill tensors, in place, from the newest readable checkpoint.

        Returns:
            Its step and its plain values; 0 and None where there is none. Then the tensors may hold
            anything if some could be read and others not.
        """
        tried: set[str] = set()
        while True:
            newest = self._newest_readable(tried) if self._world.rank == 0 else None
            found = self._world.share(newest)
            if found is None:
                return 0, None
            path, content = Path(found[0]), found[1]
            tried.add(path.name)
            problem: BaseException | None = None
            try:
                with _alone_or_not():
                    reader = HuggingFaceStorageReader(str(path))
                    load_shards(dict(tensors), storage_reader=reader, process_group=self._group)
            except (Exception, CheckpointException) as error:
                problem = error
            if not self._world.all(problem is None):
                self._skip(path, problem or "another task could not read it")
                continue
            if self._world.rank == 0:
                curve = [CurvePoint.model_validate(point) for point in content["curve"]]
                write_curve(self.job.folder, curve)
                print(f"resumed at step {content['step']} from {path}", flush=True)
            return content["step"], content["state"]

    def after_step(
        self,
        step: int,
        state: Callable[[], State],
        around: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext,
    ) -> None:
        """Write a checkpoint if one is due; to be called after each step.

        Args:
            step: number of steps that are done.
            state: called for the tensors and the plain values only where they are written.
            around: entered for as long as training waits for it.

        Raises:
            Preempted: the job is to end now. What it wrote is where its next attempt begins.
        """
        asked = self._world.follow_first(self._asked)
        if asked:
            with around():
                self.save(step, *state())
                if asked == _PREEMPTED:
                    self.finish()
        if asked == _PREEMPTED:
            raise Preempted(self._reason or "the first task was asked to end")

    def _asked(self) -> float:
        self._reason = self.preemption() or ""
        return _PREEMPTED if self._reason else _DUE if self.is_due() else 0.0

    def save(
        self, step: int, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]
    ) -> None:
        """Write a checkpoint, or begin to.

        A full disk must not cost the run: what fails is printed, and the older ones stay.

        Args:
            step: number of steps that are done.
            tensors: by name, whole or in shards.
            values: plain values, the same in all tasks.
        """
        self.finish()
        started = time.monotonic()
        curve = [point.model_dump() for point in read_curve(self.job.folder)]
        text = json.dumps({"step": step, "curve": curve, "state": values})
        name = self._world.share(uuid.uuid4().hex)
        unfinished = self.job.checkpoint_folder / f"{name}{UNFINISHED}"
        staged = BlockingAsyncStager().stage(dict(tensors)) if self._in_background else tensors
        self._written = self._thread.submit(self._write, step, unfinished, staged, text, started)
        if not self._in_background:
            self.finish()

    def finish(self) -> None:
        """Wait for what is being written."""
        if self._written is not None:
            self._written.result()
        self._written = None

    def _write(
        self,
        step: int,
        unfinished: Path,
        tensors: Mapping[str, torch.Tensor],
        text: str,
        started: float,
    ) -> None:
        try:
            unfinished.mkdir(parents=True, exist_ok=True)
            with _alone_or_not():
                writer = HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
                save_shards(dict(tensors), storage_writer=writer, process_group=self._group)
            if self._world.rank == 0:
                (unfinished / _STATE).write_text(text)
                for path in unfinished.iterdir():
                    sync(path)
                final = unfinished.with_name(name_of(step, _digest(unfinished)))
                unfinished.rename(final)
                sync(final.parent)
                self._remove_old(final)
            self.n_written += 1
        except (OSError, CheckpointException) as error:
            remove(unfinished)
            self._failed(step, _disks_fault(error))
        finally:
            self._took(started)

    def _newest_readable(self, tried: set[str]) -> tuple[str, dict[str, Any]] | None:
        for path in newest_first(self.job.checkpoint_folder):
            if path.name in tried:
                continue
            try:
                content = json.loads((path / _STATE).read_text())
                digest = _digest(path)
            except FileNotFoundError:  # another attempt has written newer ones meanwhile
                tried.add(path.name)
            except (OSError, ValueError) as error:
                tried.add(path.name)
                self._skip(path, error)
            else:
                if path.name == name_of(content["step"], digest):
                    return str(path), content
                tried.add(path.name)
                self._skip(path, "its bytes are not those that were written")
        return None


def _disks_fault(error: OSError | CheckpointException) -> OSError:
    """Raises what is none."""
    if isinstance(error, OSError):
        return error
    for cause, _ in error.failures.values():
        if not isinstance(cause, OSError):
            raise error
    return OSError("; ".join(str(cause) for cause, _ in error.failures.values()))


def _digest(folder: Path) -> str:
    digests = []
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            digests.append(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}")
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


@contextlib.contextmanager
def _alone_or_not() -> Iterator[None]:
    """A task that is alone need not be told so by torch, at each checkpoint."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
