"""The memory that a run is expected to need, beside what torch keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from carbs.launchers.lm.config import Config
from carbs.launchers.lm.memory import GIB, MemoryMeter, estimate_memory, peak_flops
from carbs.launchers.lm.model import Transformer
from carbs.launchers.lm.optimizer import build_optimizers

CPU = torch.device("cpu")


def kept_by_torch(config: Config) -> tuple[int, int]:
    """Bytes of weights, gradients and moments; and of what the backward pass is left, if larger."""
    shape = config.shape()
    model = Transformer(shape, torch.Generator().manual_seed(0))
    tokens = torch.zeros(config.micro_batch_size, config.seq_len, dtype=torch.long)
    storages: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(tokens, targets=tokens, dropout_keys=torch.zeros(len(tokens)).long())
    activations = sum(size for place, size in storages.items() if place not in weights)
    loss.backward()
    state = 0
    for optimizer in build_optimizers(model, config):
        optimizer.step()
        for moments in optimizer.state.values():
            state += sum(moment.nbytes for moment in moments.values() if moment.ndim)
    state += sum(2 * parameter.nbytes for parameter in model.parameters())
    return state, activations


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"width": 256, "depth": 3, "seq_len": 64},
        {"optimizer": "muon", "tied_embeddings": True},
        {"dropout": 0.1, "mlp_ratio": 4.0},
    ],
)
def test_what_is_expected_is_what_torch_keeps(fields: dict[str, Any]) -> None:
    config = Config(**{"width": 128, "depth": 4, "micro_batch_size": 8, **fields})
    expected = estimate_memory(config, config.shape(), CPU)
    state, activations = kept_by_torch(config)
    assert expected.state == state
    # Kept are the logits' softmax; at the most there are the logits and their gradient as well.
    logits = 4 * config.micro_batch_size * config.seq_len * 256
    assert expected.activations + expected.logits == pytest.approx(
        activations + 2 * logits, rel=0.05
    )


def test_shards_share_the_state() -> None:
    for device in (CPU, torch.device("cuda")):
        config = Config(width=256, depth=64, parallel="fsdp")
        one, eight = (estimate_memory(config, config.shape(), device, n_tasks=n) for n in (1, 8))
        # Two blocks of the 64 are whole at a time.
        assert one.state / 8 < eight.state < 1.25 * one.state / 8
        whole = Config(width=256, depth=64)
        assert estimate_memory(whole, whole.shape(), device, n_tasks=8).state == one.state


def test_the_meter_sees_what_was_used_for_a_while() -> None:
    meter = MemoryMeter(CPU)
    before = meter.used
    size = before + GIB // 4
    torch.ones(size // 4)
    assert meter.used >= 0.9 * size
    assert meter.of > size


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("x86_64", None),
    ],
)
def test_what_devices_are_made_for(name: str, tflops: float | None) -> None:
    assert peak_flops(name) == (None if tflops is None else tflops * 1e12)
