"""Several tasks that train one model: who they are, where they meet, and what they tell each other.

Slurm's ``srun``, submitit and torchrun start the tasks; this reads what they left in the
environment. Tasks add up tensors over NCCL between GPUs, and tell each other all else over gloo
between processors. None waits for another longer than the time-out: where one fails, all do.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from carbs.launchers.job.environment import task
from carbs.launchers.job.protocol import Preempted, StoppedEarly, TaskLostError

TIMEOUT_S = 600.0
Work = TypeVar("Work")


@dataclass(frozen=True)
class World:
    """The tasks that train together. One that is alone talks to nobody.

    Attributes:
        rank: which of them this is, from 0.
        size: how many there are.
        device: where the tensors lie that they add up.

    Raises:
        TaskLostError: by every method, where another task has failed or takes too long.
    """

    rank: int
    size: int
    device: torch.device

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Put the sum over all tasks in place of each tensor, all in one message."""
        if self.size == 1:
            return
        ours = list(tensors)
        message = torch.cat([tensor.flatten() for tensor in ours])
        with answered():
            dist.all_reduce(message)
        totals = torch.split(message, [tensor.numel() for tensor in ours])
        for tensor, total in zip(ours, totals, strict=True):
            tensor.copy_(total.view_as(tensor))

    def share(self, value: Any) -> Any:
        """What the first task has: tensors, on the CPU, and plain values."""
        if self.size == 1:
            return value
        buffer = io.BytesIO()
        if self.rank == 0:
            torch.save(value, buffer)
        (length,) = self.first(buffer.tell())
        message = torch.empty(int(length), dtype=torch.uint8)
        if self.rank == 0:
            message.copy_(torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8))
        with answered():
            dist.broadcast(message, src=0)
        if self.rank == 0:
            return value
        received = io.BytesIO(message.numpy().tobytes())
        return torch.load(received, map_location="cpu", weights_only=True)

    def first(self, *numbers: float) -> tuple[float, ...]:
        """The numbers that the first task has. They go between processors: no GPU is waited for."""
        if self.size == 1:
            return numbers
        message = torch.tensor(numbers, dtype=torch.float64)
        with answered():
            dist.broadcast(message, src=0)
        return tuple(message.tolist())

    def divided(self, work: Sequence[Work]) -> Iterator[tuple[Work, bool]]:
        """This task's part of some work, and of each piece whether it counts.

        All do as many: where models lie in shards, the tasks need each other for every piece. What
        is left over at the end is done again by those that have nothing, and does not count.
        """
        for first in range(0, len(work), self.size):
            place = first + self.rank
            yield work[place % len(work)], place < len(work)

    def all(self, holds: bool) -> bool:
        """Whether something holds in every task."""
        if self.size == 1:
            return holds
        message = torch.tensor([float(holds)])
        with answered():
            dist.all_reduce(message, dist.ReduceOp.MIN)
        return bool(message.item())

    def follow_first(self, action: Callable[[], float | None]) -> float:
        """Do something in the first task alone, such as a report; it ends all tasks or none.

        Returns:
            The number that the action returned, 0 for None.

        Raises:
            StoppedEarly, Preempted: as the action does, in every task.
        """
        end: StoppedEarly | Preempted | None = None
        answer = 0.0
        if self.rank == 0:
            try:
                answer = action() or 0.0
            except (StoppedEarly, Preempted) as error:
                end = error
        number = end.cost if isinstance(end, StoppedEarly) else answer
        kinds = isinstance(end, StoppedEarly), isinstance(end, Preempted)
        is_stopped, is_preempted, number = self.first(*kinds, number)
        if end is not None:
            raise end
        if is_stopped:
            raise StoppedEarly(number)
        if is_preempted:
            raise Preempted("the first task was asked to end")
        return number


ALONE = World(0, 1, torch.device("cpu"))


@contextmanager
def answered() -> Iterator[None]:
    """Around what may talk to other tasks.

    Raises:
        TaskLostError: one of them does not answer. What else is wrong passes as it is.
    """
    try:
        yield
    except RuntimeError as error:
        # Gloo's own errors have no type.
        if isinstance(error, dist.DistError) or re.search(r"gloo|[Cc]onnection", str(error)):
            raise TaskLostError(str(error)) from error
        raise


@contextmanager
def process_group(
    device: torch.device, *, timeout_s: float = TIMEOUT_S, meeting: int = 0
) -> Iterator[World]:
    """Meet the other tasks of this job; inside, ``torch.distributed`` is initialized.

    Args:
        device: that this task computes on.
        timeout_s: how long one waits for another.
        meeting: 0 or 1; a job that meets twice should do so in two places.

    Raises:
        TaskLostError: the others did not come in time.
    """
    rank, size = task()
    if size == 1:
        yield World(0, 1, device)
        return
    host, port = meeting_place()
    with answered():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{host}:{port + meeting}",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout_s),
        )
    try:
        yield World(rank, size, device)
    finally:
        dist.destroy_process_group()


def local_device(environment: Mapping[str, str] = os.environ) -> torch.device:
    """The device of this task: its own GPU among those it sees, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    names = ("SUBMITIT_LOCAL_LOCALID", "LOCAL_RANK", "SLURM_LOCALID")
    local_rank = int(next((environment[name] for name in names if name in environment), 0))
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def meeting_place(environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Address and port on which the first task waits for the others.

    ``MASTER_ADDR`` and ``MASTER_PORT`` where they are set. Otherwise the node that started the
    tasks, which under Slurm is the first of the job, and a port that no other job there has.

    Raises:
        RuntimeError: nothing says where.
    """
    is_local = "SUBMITIT_LOCAL_NTASKS" in environment
    host = environment.get("MASTER_ADDR") or environment.get("SLURM_LAUNCH_NODE_IPADDR")
    if is_local:
        host = "127.0.0.1"
    if not host:
        raise RuntimeError(
            "several tasks, but neither MASTER_ADDR nor SLURM_LAUNCH_NODE_IPADDR says where the "
            "first one is: start them with srun or torchrun"
        )
    if "MASTER_PORT" in environment:
        return host, int(environment["MASTER_PORT"])
    job = int(environment.get("SUBMITIT_LOCAL_JOB_ID" if is_local else "SLURM_JOB_ID", 0))
    # Below the ports that systems give out. The orphan of a requeued job may still hold its own.
    attempt = job + 997 * int(environment.get("SLURM_RESTART_COUNT", 0))
    return host, 20_000 + 2 * (attempt % 6_000)
