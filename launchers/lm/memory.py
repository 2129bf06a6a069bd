"""How much memory a run needs, before it starts; and how well it uses its device."""

from __future__ import annotations

import re
import resource
from dataclasses import dataclass

import psutil
import torch

from carbs.analysis.planning.budget import GPUS
from carbs.launchers.lm.config import Config
from carbs.launchers.lm.model import ModelConfig

GIB = 2**30


@dataclass(frozen=True)
class MemoryEstimate:
    """What one task needs, in bytes.

    Attributes:
        state: weights, gradients, and what the optimizer keeps: exact, but for FSDP's shards that
            are whole for a while.
        activations: what a micro-batch's forward pass leaves for the backward pass.
        logits: they and their gradient, of a micro-batch.
    """

    state: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.state + self.activations + self.logits


def estimate_memory(
    config: Config, shape: ModelConfig, device: torch.device, n_tasks: int = 1
) -> MemoryEstimate:
    """The memory that one of ``n_tasks`` needs.

    Of each token, a block keeps some 9 d + 4 h numbers: the inputs of its norms and products,
    queries, keys, values and the result of attention, and gate, up and their product. A compiler
    may keep fewer.
    """
    n_ends = shape.n_params_with_ends - shape.n_params
    moments = 1 if config.optimizer == "muon" else 2
    numbers = shape.n_params * (2 + moments) + n_ends * (2 + 2)
    is_gpu = device.type == "cuda"
    size = 2 if is_gpu else 4  # bytes: bfloat16 or float32
    cast = size * shape.n_params_with_ends if is_gpu else 0  # the weights as they are computed with
    if config.parallel == "fsdp" and n_tasks > 1:
        numbers = -(-numbers // n_tasks)
        # Whole at a time: the ends and two blocks, their gradients, and these to be added up.
        blocks = shape.n_params * min(2, shape.depth) // shape.depth
        cast = (2 * size + 4) * (n_ends + blocks)
    sequences = min(config.micro_batch_size, -(-config.sequences // n_tasks))
    tokens = sequences * config.seq_len
    d, h = shape.width, shape.hidden_width
    kept = size * (shape.depth * (9 * d + 4 * h) + 3 * d)
    if shape.dropout:
        kept += (2 * shape.depth + 1) * d  # which were kept, a byte each
    # The logits; in float32 their softmax and its gradient, on a GPU the logits again.
    per_logit = 2 + 4 + 4 + 4 if is_gpu else 4 + 4 + 4
    return MemoryEstimate(
        state=4 * numbers + cast,
        activations=tokens * kept,
        logits=per_logit * tokens * shape.vocab_size,
    )


class MemoryMeter:
    """The most memory in use since now.

    On a GPU, what torch has allocated, and before now too. On a CPU, by how much the most that the
    process ever held is above what it holds now: nothing where it held more before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._before = 0 if device.type == "cuda" else psutil.Process().memory_info().rss

    @property
    def used(self) -> int:
        """In bytes."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return max(0, most - self._before)

    @property
    def of(self) -> int:
        """All that the device has, in bytes."""
        if self._device.type == "cuda":
            return torch.cuda.get_device_properties(self._device).total_memory
        return psutil.virtual_memory().total


def peak_flops(device_name: str) -> float | None:
    """FLOPs a second that a device is made for, dense in bfloat16; None where it is not known."""
    known = [name for name in GPUS if re.search(rf"\b{name}\b", device_name)]
    return GPUS[max(known, key=len)].peak_flops if known else None
