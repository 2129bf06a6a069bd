"""A decoder-only transformer.

Pre-norm blocks of causal attention with rotary positions (Su et al. 2021, arXiv 2104.09864) and a
gated MLP (SwiGLU, Shazeer 2020, arXiv 2002.05202). There are no biases, and the norms have no
gains, so every parameter is the matrix of one product and the count of FLOPs is exact.

    B  sequences in a batch          d  width             h  hidden width of the MLP
    T  tokens in a sequence          L  depth             V  vocabulary (256 for bytes)
    N  parameters without the embedding and the unembedding
    C  FLOPs of training: about 6 N a token
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

HEAD_WIDTH = 16
N_BYTES = 256


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a :class:`Transformer`.

    Attributes:
        width: features of the residual stream, a multiple of 16.
        depth: number of blocks.
        vocab_size: tokens are below it; bytes by default.

    Raises:
        ValueError: the width is no positive multiple of 16, or the depth is below 1.
    """

    width: int
    depth: int
    vocab_size: int = N_BYTES

    def __post_init__(self) -> None:
        if self.width < HEAD_WIDTH or self.width % HEAD_WIDTH:
            raise ValueError(
                f"width must be a positive multiple of {HEAD_WIDTH}, and is {self.width}"
            )
        if self.depth < 1:
            raise ValueError(f"depth must be at least 1, and is {self.depth}")

    @property
    def n_heads(self) -> int:
        """Attention heads, each 16 wide."""
        return self.width // HEAD_WIDTH

    @property
    def hidden_width(self) -> int:
        """Features inside the MLP: 8/3 of the width, rounded up to a multiple of 16."""
        return 16 * math.ceil(self.width / 6)

    @property
    def n_params(self) -> int:
        """N: all parameters except the embedding and the unembedding."""
        return self.depth * (4 * self.width**2 + 3 * self.width * self.hidden_width)

    def flops_per_token(self, seq_len: int) -> int:
        """FLOPs that training spends on one token, in sequences of ``seq_len`` tokens.

        Each multiply-add of the forward pass is two FLOPs, and the backward pass costs twice the
        forward: 6 N for the blocks, as in C = 6 N D (Kaplan et al. 2020, arXiv 2001.08361), and
        6 d V for the logits. Scores and values of attention take 12 L d T; the causal half that a
        kernel may skip is counted.
        """
        attention = 12 * self.depth * self.width * seq_len
        logits = 6 * self.width * self.vocab_size
        return 6 * self.n_params + attention + logits


class Transformer(nn.Module):
    """Tokens in, logits of the next token out.

    Args:
        config: the shape.
        generator: draws the initial weights; the global generator is left alone.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.embedding = _matrix(config.vocab_size, config.width, 1.0, generator)
        self.blocks = nn.ModuleList(Block(config, generator) for _ in range(config.depth))
        # One over the width, not over its root: the first logits are small at every width.
        self.unembedding = _matrix(config.vocab_size, config.width, 1 / config.width, generator)

    def forward(
        self, tokens: Tensor, positions: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Logits of the token after each token.

        Args:
            tokens: ``B x T`` tokens, int64.
            positions: ``B x T`` or ``T`` places in the text; 0, 1, 2, ... by default.
            mask: ``B x T x T``, true where a token (row) may look at a token (column); causal by
                default.

        Returns:
            ``B x T x V`` logits.
        """
        if positions is None:
            positions = torch.arange(tokens.shape[-1], device=tokens.device)
        rotation = _rotation(positions)
        x = F.embedding(tokens, self.embedding)
        for block in self.blocks:
            x = block(x, rotation, mask)
        return F.linear(_norm(x), self.unembedding)


class Block(nn.Module):
    """Attention, then the MLP, each added to the residual stream."""

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        d, h = config.width, config.hidden_width
        # 2 L branches add up in the residual stream: each starts smaller by the root of that.
        branch = 1 / math.sqrt(2 * config.depth)
        self.n_heads = config.n_heads
        self.qkv = _matrix(3 * d, d, 1 / math.sqrt(d), generator)
        self.mix = _matrix(d, d, branch / math.sqrt(d), generator)
        self.gate_up = _matrix(2 * h, d, 1 / math.sqrt(d), generator)
        self.down = _matrix(d, h, branch / math.sqrt(h), generator)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None) -> Tensor:
        """``B x T x d`` to the same."""
        B, T, d = x.shape
        qkv = F.linear(_norm(x), self.qkv).view(B, T, 3 * self.n_heads, HEAD_WIDTH)
        qk, v = qkv.transpose(1, 2).tensor_split((2 * self.n_heads,), dim=1)
        q, k = _rotate(qk, rotation).to(v.dtype).chunk(2, dim=1)
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=None if mask is None else mask[:, None], is_causal=mask is None
        )
        x = x + F.linear(attended.transpose(1, 2).reshape(B, T, d), self.mix)
        gate, up = F.linear(_norm(x), self.gate_up).chunk(2, dim=-1)
        return x + F.linear(F.silu(gate) * up, self.down)


def _matrix(rows: int, columns: int, std: float, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(std * torch.randn(rows, columns, generator=generator))


def _norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],))


def _rotation(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of each place's angles, ``... x 1 x T x 8``, to broadcast over heads."""
    pairs = torch.arange(HEAD_WIDTH // 2, device=positions.device)
    frequencies = 1000.0 ** (-pairs / (HEAD_WIDTH // 2))
    angles = (positions[..., None] * frequencies).unsqueeze(-3)
    return angles.cos(), angles.sin()


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turns the pairs (x_i, x_{i+8}) of each head by the angles of their places."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
