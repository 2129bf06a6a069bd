"""A decoder-only transformer over tokens, which are bytes unless the data says otherwise.

Pre-norm blocks of causal attention with rotary positions (Su et al. 2021, arXiv 2104.09864) and a
gated MLP (SwiGLU, Shazeer 2020, arXiv 2002.05202). There are no biases, and the norms have no
gains, so every parameter is the matrix of one product and the count of FLOPs is exact.

    B  sequences in a batch          d  width             h  hidden width of the MLP
    T  tokens in a sequence          L  depth             V  vocabulary (256 for bytes)
    N  parameters without the embedding and the unembedding
    C  FLOPs of training: about 6 N a token

Two parametrizations say how initial weights, multipliers and learning rates follow from the shape.
Under ``standard`` a product's weights start at the root of one over its inputs, those that end a
branch smaller by the root of 2 L, and one learning rate holds for all. ``mup`` is CompleteP: the
maximal update parametrization in width (Yang et al. 2022, arXiv 2203.03466, table 8) with branches
divided by the depth (Dey et al. 2025, arXiv 2505.01618, table 1, alpha = 1). With m = d / d0 and
l = L / L0 beside a base shape, at which both are the same,

                      initial deviation    multiplier    AdamW's rate   weight decay   epsilon
    embedding               1                  1              1               -           1/m
    a block's matrix   as at L0, d^(-1/2)    1/l (branch)    1/m              m         1/(m l)
    unembedding            1/d0               1/m             1               -           1/m

so that the best learning rate at the base shape is nearly the best at others. Muon's updates have a
given spectral norm, which has to grow as the root of outputs over inputs (Yang, Simon and Bernstein
2023, arXiv 2310.17813); scaled as torch does to match AdamW's, that is a rate of m^(-1/2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

N_BYTES = 256
HEAD_WIDTHS = (64, 32, 16)  # by default the first that divides the width
TIED_STD = 0.02  # of one matrix at both ends, as in GPT-2
NO_TARGET = -100  # a place whose prediction does not count


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a :class:`Transformer`, and what its parametrization makes of it.

    Attributes:
        width: features of the residual stream, a multiple of the head width.
        depth: number of blocks.
        head_width: features of an attention head, even; by default the first of 64, 32 and 16 that
            divides the width.
        mlp_ratio: hidden width of the MLP over the width.
        vocab_size: distinct tokens.
        tied_embeddings: whether one matrix is the embedding and the unembedding.
        dropout: share of the features that is zeroed, after the embedding and in each branch.
        init_scale: times every initial standard deviation.
        parametrization: ``standard`` or ``mup``.
        base_width: at which, with ``base_depth``, both parametrizations are the same.
        base_depth: see there.

    Raises:
        ValueError: a field is out of its range. The message names it.
    """

    width: int
    depth: int
    head_width: int | None = None
    mlp_ratio: float = 8 / 3
    vocab_size: int = N_BYTES
    tied_embeddings: bool = False
    dropout: float = 0.0
    init_scale: float = 1.0
    parametrization: Literal["standard", "mup"] = "standard"
    base_width: int = 64
    base_depth: int = 2

    def __post_init__(self) -> None:
        least = self.head_width or HEAD_WIDTHS[-1]
        if least < 2 or least % 2:
            raise ValueError(f"head_width must be positive and even, and is {self.head_width}")
        if self.width < least or self.width % least:
            raise ValueError(f"width must be a positive multiple of {least}, and is {self.width}")
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, and is {self.depth}")

    @property
    def head_size(self) -> int:
        """Features of an attention head."""
        return self.head_width or next(n for n in HEAD_WIDTHS if self.width % n == 0)

    @property
    def n_heads(self) -> int:
        """Attention heads."""
        return self.width // self.head_size

    @property
    def hidden_width(self) -> int:
        """Features inside the MLP: rounded up to a multiple of 16, or of 64 where above 1,024."""
        wanted = self.mlp_ratio * self.width
        unit = 16 if wanted <= 1024 else 64
        return unit * math.ceil(wanted / unit - 1e-9)

    @property
    def n_params(self) -> int:
        """N: all parameters except the embedding and the unembedding."""
        return self.depth * (4 * self.width**2 + 3 * self.width * self.hidden_width)

    @property
    def n_params_with_ends(self) -> int:
        """All parameters."""
        return self.n_params + (1 if self.tied_embeddings else 2) * self.width * self.vocab_size

    def flops_per_token(self, seq_len: int) -> int:
        """FLOPs that training spends on one token, in sequences of ``seq_len`` tokens.

        Each multiply-add of the forward pass is two FLOPs, and the backward pass costs twice the
        forward: 6 N for the blocks, as in C = 6 N D (Kaplan et al. 2020, arXiv 2001.08361), and
        6 d V for the logits. Scores and values of attention take 12 L d T; the causal half that a
        kernel may skip is counted, as is usual where MFU is told (Chowdhery et al. 2022,
        arXiv 2204.02311, appendix B).
        """
        attention = 12 * self.depth * self.width * seq_len
        logits = 6 * self.width * self.vocab_size
        return 6 * self.n_params + attention + logits

    @property
    def width_ratio(self) -> float:
        """m: the width over that of the base under ``mup``, otherwise 1."""
        return self.width / self.base_width if self.parametrization == "mup" else 1.0

    @property
    def depth_ratio(self) -> float:
        """l: the depth over that of the base under ``mup``, otherwise 1."""
        return self.depth / self.base_depth if self.parametrization == "mup" else 1.0

    @property
    def attention_scale(self) -> float:
        """What scores are multiplied by: under ``mup`` one over the head width, 1/8 at 64."""
        if self.parametrization == "mup":
            return math.sqrt(HEAD_WIDTHS[0]) / self.head_size
        return 1 / math.sqrt(self.head_size)


class Transformer(nn.Module):
    """Tokens in, logits of the next token out.

    Args:
        config: the shape.
        generator: draws the initial weights; the global generator is left alone.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        d, V, scale = config.width, config.vocab_size, config.init_scale
        std = TIED_STD if config.tied_embeddings else 1.0
        self.embedding = _matrix(V, d, scale * std, generator)
        self.blocks = nn.ModuleList(Block(config, i, generator) for i in range(config.depth))
        if config.tied_embeddings:
            self.unembedding = self.embedding
        else:
            # One over the width, not over its root: the first logits are small at every width.
            self.unembedding = _matrix(V, d, scale * config.width_ratio / d, generator)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        targets: Tensor | None = None,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """Logits of the token after each token, or the loss of the targets.

        Args:
            tokens: ``B x T`` tokens, int64.
            positions: ``B x T`` or ``T`` places in the text; 0, 1, 2, ... by default.
            mask: ``B x T x T``, true where a token (row) may look at a token (column); causal by
                default.
            targets: ``B x T`` tokens to predict, -100 where none counts.
            dropout_keys: ``B`` numbers, int64, that with the place in the model decide what is
                dropped from each sequence. Without them nothing is.

        Returns:
            ``B x T x V`` logits; with targets the sum of their negative log-likelihoods, in nats.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[-1], device=tokens.device)
        config = self.config
        rotation = _rotation(positions, config.head_size)
        x = F.embedding(tokens, self.embedding)
        if torch.is_autocast_enabled(x.device.type):  # the residual stream too
            x = x.to(torch.get_autocast_dtype(x.device.type))
        x = _dropout(x, config.dropout, dropout_keys, 0)
        for block in self.blocks:
            x = block(x, rotation, mask, dropout_keys)
        x = _norm(x)
        if config.width_ratio != 1:
            x = x / config.width_ratio
        logits = F.linear(x, self.unembedding)
        if targets is None:
            return logits
        return F.cross_entropy(
            logits.float().flatten(0, 1),
            targets.flatten(),
            ignore_index=NO_TARGET,
            reduction="sum",
        )


class Block(nn.Module):
    """Attention, then the MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, index: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.index = index
        d, h, scale = config.width, config.hidden_width, config.init_scale
        # 2 L branches add up in the residual stream: each starts smaller by the root of that.
        branch = scale / math.sqrt(2 * config.depth / config.depth_ratio)
        # Each a matrix of its own, as Muon makes the update of each orthogonal by itself.
        self.q, self.k, self.v = (_matrix(d, d, scale / math.sqrt(d), generator) for _ in range(3))
        self.mix = _matrix(d, d, branch / math.sqrt(d), generator)
        self.gate, self.up = (_matrix(h, d, scale / math.sqrt(d), generator) for _ in range(2))
        self.down = _matrix(d, h, branch / math.sqrt(h), generator)

    def forward(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        dropout_keys: Tensor | None = None,
    ) -> Tensor:
        """``B x T x d`` to the same."""
        x = x + self._branch(self._attention(_norm(x), rotation, mask), dropout_keys, 1)
        y = _norm(x)
        hidden = F.silu(F.linear(y, self.gate)) * F.linear(y, self.up)
        return x + self._branch(F.linear(hidden, self.down), dropout_keys, 2)

    def _attention(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        B, T, d = x.shape
        scale = self.config.attention_scale
        q, k, v = (
            F.linear(x, weight).view(B, T, self.config.n_heads, self.config.head_size)
            for weight in (self.q, self.k, self.v)
        )
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        q, k = _rotate(torch.cat((q, k), dim=1), rotation).to(v.dtype).chunk(2, dim=1)
        if mask is not None:
            mask = mask[:, None]
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale
        )
        return F.linear(attended.transpose(1, 2).reshape(B, T, d), self.mix)

    def _branch(self, x: Tensor, dropout_keys: Tensor | None, place: int) -> Tensor:
        if self.config.depth_ratio != 1:
            x = x / self.config.depth_ratio
        return _dropout(x, self.config.dropout, dropout_keys, 2 * self.index + place)


def _matrix(rows: int, columns: int, std: float, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(std * torch.randn(rows, columns, generator=generator))


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


def _rotation(positions: Tensor, head_size: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each place's angles, ``... x 1 x T x (head_size / 2)``, over heads."""
    pairs = torch.arange(head_size // 2, device=positions.device)
    frequencies = 1000.0 ** (-pairs / (head_size // 2))
    angles = (positions[..., None] * frequencies).unsqueeze(-3)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turns the pairs (x_i, x_{i + head_size / 2}) of each head by the angles of their places."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _dropout(x: Tensor, share: float, keys: Tensor | None, place: int) -> Tensor:
    """Zeroes a share of the features; which, a hash says of the sequence's key and the place.

    A generator's draws would depend on how a batch is split over devices. The hash is splitmix64
    (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
    """
    if keys is None or share == 0:
        return x
    _, T, d = x.shape
    places = torch.arange(place * T * d, (place + 1) * T * d, device=x.device).view(T, d)
    h = keys[:, None, None] + (places + 1) * -7046029254386353131
    h = (h ^ (h >> 30)) * -4658895280553007687
    h = (h ^ (h >> 27)) * -7723592293110705685
    kept = ((h ^ (h >> 31)) & 0xFFFFFF) >= share * 2**24
    return x * kept / (1 - share)
