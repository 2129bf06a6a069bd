"""The transformer: what it may see, what it counts, and that it leaves global state alone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from carbs.launchers.lm.model import NO_TARGET, ModelConfig, Transformer

CONFIGS = [
    ModelConfig(16, 1),
    ModelConfig(48, 3),
    ModelConfig(128, 2),
    ModelConfig(128, 2, head_width=32, mlp_ratio=4, vocab_size=100, tied_embeddings=True),
    ModelConfig(64, 3, head_width=16, parametrization="mup", base_width=16, base_depth=1),
]


def build(width: int, depth: int, seed: int = 0) -> Transformer:
    return Transformer(ModelConfig(width, depth), torch.Generator().manual_seed(seed))


def random_bytes(rows: int, length: int) -> torch.Tensor:
    return torch.randint(256, (rows, length), generator=torch.Generator().manual_seed(1))


def test_a_later_byte_changes_no_earlier_logits() -> None:
    model, tokens = build(32, 2), random_bytes(2, 20)
    changed = tokens.clone()
    changed[:, 12] = (changed[:, 12] + 1) % 256
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :12], after[:, :12])
    assert not torch.allclose(before[:, 12:], after[:, 12:])


def test_order_matters_and_absolute_position_does_not() -> None:
    model, tokens = build(32, 2), random_bytes(2, 20)
    places = torch.arange(20)
    torch.testing.assert_close(
        model(tokens, positions=places), model(tokens, positions=places + 37), atol=1e-5, rtol=1e-4
    )
    stretched = model(tokens, positions=2 * places)
    assert not torch.allclose(model(tokens), stretched, atol=1e-4)


def test_a_causal_mask_is_the_default() -> None:
    model, tokens = build(32, 2), random_bytes(2, 20)
    mask = torch.ones(2, 20, 20, dtype=torch.bool).tril()
    torch.testing.assert_close(model(tokens), model(tokens, mask=mask))


@pytest.mark.parametrize("config", CONFIGS)
def test_parameters_are_counted(config: ModelConfig) -> None:
    model = Transformer(config, torch.Generator().manual_seed(0))
    assert config.n_params == sum(p.numel() for p in model.blocks.parameters())
    assert config.n_params_with_ends == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("config", CONFIGS)
def test_flops_are_those_that_torch_counts(config: ModelConfig) -> None:
    model = Transformer(config, torch.Generator().manual_seed(0))
    tokens = random_bytes(2, 33) % config.vocab_size
    # The counter knows no fused attention on the CPU, and would count it as nothing.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(tokens[:, :-1], targets=tokens[:, 1:]).backward()
    assert counter.get_total_flops() == 2 * 32 * config.flops_per_token(seq_len=32)


@pytest.mark.parametrize("width", [16, 64, 256])
def test_training_starts_near_a_uniform_guess(width: int) -> None:
    tokens = random_bytes(4, 65)
    logits = build(width, 4)(tokens[:, :-1])
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(256), abs=0.1)


def test_weights_follow_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    first, same, other = build(16, 1, seed=3), build(16, 1, seed=3), build(16, 1, seed=4)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.blocks[0].q, same.blocks[0].q)
    assert not torch.equal(first.blocks[0].q, other.blocks[0].q)


def test_heads_are_64_wide_where_the_width_allows() -> None:
    shapes = {width: ModelConfig(width, 1) for width in (16, 48, 96, 128, 192)}
    assert [shape.head_size for shape in shapes.values()] == [16, 16, 32, 64, 64]
    assert shapes[192].n_heads == 3
    assert ModelConfig(192, 1, head_width=96).n_heads == 2


def test_hidden_widths_suit_the_device() -> None:
    assert [ModelConfig(width, 1).hidden_width for width in (32, 64, 1024)] == [96, 176, 2752]
    assert ModelConfig(96, 1, mlp_ratio=4).hidden_width == 384


def test_a_target_may_not_count() -> None:
    model, tokens = build(32, 2), random_bytes(2, 20)
    targets = tokens.clone()
    targets[:, 10:] = NO_TARGET
    logits = model(tokens)[:, :10]
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, :10].flatten(), reduction="sum")
    torch.testing.assert_close(model(tokens, targets=targets), expected)


@pytest.mark.parametrize(
    ("width", "depth", "named"), [(0, 1, "width"), (24, 1, "24"), (16, 0, "depth")]
)
def test_impossible_shapes_are_refused(width: int, depth: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ModelConfig(width, depth)
