"""The optimizers, and the learning rate along a run.

AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) for all matrices, or Muon (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/) for those of the blocks and AdamW for the two ends.
Muon's update is scaled to have the size of AdamW's (Liu et al. 2025, arXiv 2502.16982), so one
learning rate serves both. Each matrix's is made orthogonal by itself. Queries, keys and values are
three, of all heads, as Jordan et al. found to be better than one; so are gate and up two.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from carbs.launchers.lm.model import Transformer

if TYPE_CHECKING:
    from carbs.launchers.lm.config import Config

EPSILON = 1e-8  # AdamW's


def build_optimizers(model: Transformer, config: Config) -> list[torch.optim.Optimizer]:
    """One optimizer, or two, of disjoint parameters; each group has its ``peak_lr``."""
    m, depth = model.config.width_ratio, model.config.depth_ratio
    rate = config.learning_rate
    betas = (config.beta1, config.beta2)
    blocks = list(model.blocks.parameters())
    ends = list(dict.fromkeys([model.embedding, model.unembedding]))
    groups = [
        {"params": ends, "peak_lr": rate, "weight_decay": 0.0, "eps": EPSILON / m},
    ]
    # Each step decays by the product of the group's rate and its weight decay: the same at every m.
    if config.optimizer == "adamw":
        decay = config.weight_decay * m
        eps = EPSILON / (m * depth)
        groups.insert(0, {"params": blocks, "peak_lr": rate / m, "weight_decay": decay, "eps": eps})
        return [torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True)]
    root = math.sqrt(m)
    group = {"params": blocks, "peak_lr": rate / root, "weight_decay": config.weight_decay * root}
    return [
        torch.optim.Muon(
            [group], lr=rate, momentum=config.momentum, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(groups, lr=rate, betas=betas, fused=True),
    ]


def schedule(step: int, steps: int, config: Config) -> float:
    """The share of the peak learning rate at a step, counted from 0.

    A linear rise over the warm-up, then a fall to ``final_fraction`` at the end: in a line, along
    half a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983), or in a line over the last
    ``decay_fraction`` of the steps alone (WSD, Hu et al. 2024, arXiv 2404.06395).
    """
    warmup = round(config.warmup_fraction * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    fall = steps - warmup
    if config.schedule == "wsd":
        fall = min(fall, max(1, round(config.decay_fraction * steps)))
    left = min(1.0, (steps - step) / fall)
    if config.schedule == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    return config.final_fraction + (1 - config.final_fraction) * left
