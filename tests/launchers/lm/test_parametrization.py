"""muP: what a model computes changes as much at every width and depth, as its sources derive."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carbs.launchers.lm.config import Config
from carbs.launchers.lm.model import Transformer
from carbs.launchers.lm.optimizer import build_optimizers

WIDTHS, DEPTHS = [64, 128, 256], [2, 4, 8, 16]
N_STEPS = 4


def changes(**fields: Any) -> dict[str, float]:
    """Root mean square change, over a few steps, of a block's output and of the logits."""
    config = Config(**{"head_width": 16, "learning_rate": 0.01, **fields})
    generator = torch.Generator().manual_seed(0)
    model = Transformer(config.shape(), generator)
    batch = torch.randint(256, (4, 33), generator=torch.Generator().manual_seed(1))
    seen: dict[str, Tensor] = {}

    def keep(module: torch.nn.Module, inputs: Any, output: Tensor) -> None:
        seen["stream"] = output.detach()

    model.blocks[-1].register_forward_hook(keep)
    tokens, targets = batch[:, :-1], batch[:, 1:]
    optimizers = build_optimizers(model, config)
    with torch.no_grad():
        before = {"logits": model(tokens), **seen}
    for _ in range(N_STEPS):
        for optimizer in optimizers:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = group["peak_lr"]
        (model(tokens, targets=targets) / targets.numel()).backward()
        for optimizer in optimizers:
            optimizer.step()
    with torch.no_grad():
        after = {"logits": model(tokens), **seen}
    return {name: float((after[name] - before[name]).square().mean().sqrt()) for name in before}


def growth(sizes: list[int], name: str, **fields: Any) -> dict[str, float]:
    """The power of the size with which each change grows."""
    found = [changes(**{name: size}, **fields) for size in sizes]
    return {
        what: float(np.polyfit(np.log(sizes), np.log([change[what] for change in found]), 1)[0])
        for what in found[0]
    }


@pytest.mark.parametrize("fields", [{}, {"optimizer": "muon"}, {"tied_embeddings": True}])
def test_under_mup_activations_change_as_much_at_every_width(fields: dict[str, Any]) -> None:
    standard = growth(WIDTHS, "width", **fields)
    mup = growth(WIDTHS, "width", parametrization="mup", **fields)
    assert max(standard.values()) > 0.5
    assert all(abs(power) < 0.25 for power in mup.values())


def test_under_mup_activations_change_as_much_at_every_depth() -> None:
    standard = growth(DEPTHS, "depth")
    mup = growth(DEPTHS, "depth", parametrization="mup")
    assert max(standard.values()) > 0.3
    assert all(abs(power) < 0.15 for power in mup.values())


@pytest.mark.parametrize("fields", [{}, {"optimizer": "muon"}, {"tied_embeddings": True}])
def test_at_the_base_shape_mup_is_the_standard(fields: dict[str, Any]) -> None:
    base = {"base_width": 128, "base_depth": 3, "width": 128, "depth": 3, **fields}
    # But for scores, which are divided by the head width and not by its root: the same at 64.
    base["head_width"] = 64
    configs = [Config(**base, parametrization=name) for name in ("standard", "mup")]
    batch = torch.randint(256, (2, 17), generator=torch.Generator().manual_seed(1))
    first, second = (
        Transformer(config.shape(), torch.Generator().manual_seed(0)) for config in configs
    )
    assert torch.equal(first(batch), second(batch))
    groups = [
        [
            {key: value for key, value in group.items() if key != "params"}
            for optimizer in build_optimizers(model, config)
            for group in optimizer.param_groups
        ]
        for model, config in zip((first, second), configs, strict=True)
    ]
    assert groups[0] == groups[1]


def test_muon_makes_the_update_of_each_matrix_orthogonal_by_itself() -> None:
    """Of queries, keys and values together it would spread each one's singular values."""
    config = Config(width=64, depth=1, optimizer="muon", learning_rate=1.0, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    model = Transformer(config.shape(), generator)
    block = model.blocks[0]
    before = {name: matrix.detach().clone() for name, matrix in block.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    for optimizer in build_optimizers(model, config):
        optimizer.step()
    for name in ("q", "k", "v", "gate", "up"):
        after = getattr(block, name).detach()
        update = (before[name] - after) / (0.2 * math.sqrt(max(after.shape)))
        values = torch.linalg.svdvals(update)
        assert values.quantile(0.1) > 0.5 and values.max() < 1.5, name
