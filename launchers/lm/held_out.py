"""The loss on documents that were not trained on, in bits per byte.

Losses per token cannot be compared between tokenizers: a larger vocabulary has fewer and harder
tokens. Per byte of the text they can,

    bits per byte = (nats per token / ln 2) / (bytes per token).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from carbs.launchers.job.distributed import ALONE, World, answered
from carbs.launchers.lm.data.corpus import Component, Corpus
from carbs.launchers.lm.model import Transformer

N_SEQUENCES = 32  # of each component, the same for every model
_AT_ONCE = 8


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """A loss as it can be compared between tokenizers."""
    return nats_per_token / math.log(2) / bytes_per_token


@torch.inference_mode()
def held_out_losses(
    model: Transformer, corpus: Corpus, seq_len: int, world: World = ALONE
) -> dict[str, float]:
    """For each component the loss on some of its held-out sequences, in bits per byte.

    Args:
        model: of each task.
        corpus: whose components these are.
        seq_len: tokens that the model reads in a sequence.
        world: tasks that share the sequences among them.
    """
    return {
        name: bits_per_byte(
            _nats_per_token(model, component, seq_len, world), _bytes_per_token(component)
        )
        for name, component in corpus.components.items()
    }


def _nats_per_token(model: Transformer, component: Component, seq_len: int, world: World) -> float:
    tokens = component.tokens("held_out")
    length = min(seq_len + 1, len(tokens))
    n = min(N_SEQUENCES, len(tokens) // length)
    starts = np.linspace(0, len(tokens) - length, n).astype(int).tolist()
    rows = np.stack([tokens.read(start, length) for start in starts]).astype(np.int64)
    device = next(model.parameters()).device
    total = torch.zeros((), dtype=torch.float64)
    for part, counts in world.divided(torch.split(torch.from_numpy(rows), _AT_ONCE)):
        ours = part.to(device)
        with answered():
            logits = model(ours[:, :-1]).float().flatten(0, 1)
        loss = F.cross_entropy(logits, ours[:, 1:].flatten(), reduction="sum")
        total += loss.item() if counts else 0.0
    world.add([total])
    return total.item() / (n * (length - 1))


def _bytes_per_token(component: Component) -> float:
    side = component.side("held_out")
    return side.bytes / side.tokens
