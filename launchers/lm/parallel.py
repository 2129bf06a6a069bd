"""A model that several tasks train: whole copies of it (DDP), or a shard each (FSDP2).

Under both, each task computes the gradient of its own sequences, and torch adds them up while the
backward pass still runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from carbs.launchers.job.distributed import World, answered
from carbs.launchers.lm.model import NO_TARGET, Transformer


class Spread:
    """A model spread over the tasks, to be called for its loss.

    Args:
        model: with the same weights in each task. FSDP makes shards of its parameters, in place.
        world: the tasks. One that is alone keeps the model as it is.
        how: ``ddp`` or ``fsdp``.
        compile: whether the forward and backward pass are compiled.

    Raises:
        TaskLostError: another task has failed.
    """

    def __init__(
        self, model: Transformer, world: World, how: Literal["ddp", "fsdp"], *, compile: bool
    ) -> None:
        self._wrapped: nn.Module = model
        if world.size > 1:
            with answered():
                self._wrapped = _shard(model, world) if how == "fsdp" else _copy(model, world)
        self.loss = torch.compile(self._wrapped) if compile else self._wrapped

    @contextlib.contextmanager
    def backward(self, *, is_last: bool) -> Iterator[None]:
        """Around a forward and a backward pass of a micro-batch.

        Copies add up their gradients over the tasks in the last alone. Shards do it in each: until
        then every task would hold all gradients whole.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(answered())
            if isinstance(self._wrapped, FSDPModule):
                self._wrapped.set_is_last_backward(is_last)
            elif isinstance(self._wrapped, DistributedDataParallel) and not is_last:
                stack.enter_context(self._wrapped.no_sync())
            yield


def _copy(model: Transformer, world: World) -> nn.Module:
    ids = None if world.device.type == "cpu" else [world.device]
    return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)


def _shard(model: Transformer, world: World) -> nn.Module:
    mesh = init_device_mesh(world.device.type, (world.size,))
    for part in (*model.blocks, model):
        fully_shard(part, mesh=mesh, mp_policy=precision(world.device))
    return model


def precision(device: torch.device) -> MixedPrecisionPolicy:
    """The weights travel as they are computed with; gradients add up in float32.

    What a block is given stays as it is: rotations by bfloat16 angles would be others.
    """
    dtype = None if device.type == "cpu" else torch.bfloat16
    return MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def local(tensor: Tensor) -> Tensor:
    """This task's shard of a tensor, or the tensor, sharing memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that lies in shards."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def micro_batches(batch: Tensor, keys: Tensor, world: World, size: int) -> list[tuple[Tensor, ...]]:
    """This task's part of a batch, in parts of one shape, as many for each task.

    Where the rows do not divide evenly, the first is there again, with targets that do not count.

    Args:
        batch: ``B x (T + 1)`` tokens of all tasks.
        keys: ``B`` numbers, for dropout.
        world: the tasks.
        size: sequences in a part, at the most.

    Returns:
        Of each part the tokens and the targets, ``size x T``, and the keys.
    """
    rows = torch.arange(len(batch)).tensor_split(world.size)
    most = len(rows[0])
    n_parts = -(-most // size)
    size = -(-most // n_parts)
    own = rows[world.rank]
    padded = torch.zeros(n_parts * size, dtype=torch.long)
    padded[: len(own)] = own
    tokens, targets = batch[padded, :-1], batch[padded, 1:]
    targets[len(own) :] = NO_TARGET
    parts = (torch.split(part, size) for part in (tokens, targets, keys[padded]))
    return list(zip(*parts, strict=True))
