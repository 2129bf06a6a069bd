"""Spikes, gradients that are not finite, dropout, compiling: what happens inside the steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch._dynamo.config

from carbs.launchers.job.distributed import World
from carbs.launchers.job.protocol import BadConfigurationError, Job, Result
from carbs.launchers.lm import train as module
from carbs.launchers.lm.config import Config
from carbs.launchers.lm.train import train

SMALL = {
    "width": 32,
    "depth": 1,
    "tokens": 24_576,
    "batch_size": 4,
    "seq_len": 64,  # 96 steps
    "learning_rate": 0.01,
}

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Trains on a text of this test's own, with some fields changed."""
    (tmp_path / "text").mkdir()
    for i in range(12):
        lines = [f"The line that is numbered {j} in file {i}.\n" for j in range(40)]
        (tmp_path / "text" / f"{i}.txt").write_text("".join(lines))

    def run(**fields: Any) -> Result:
        settings = {"data": {"mine": str(tmp_path / "text")}}
        return train({**SMALL, **fields}, Job(tmp_path, tmp_path / "shared", 3, settings))

    return run


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Step 80 is noise."""
    batch = module.DataMix.batch

    def noise(self: module.DataMix, step: int, size: int) -> torch.Tensor:
        tokens = batch(self, step, size)
        if step == 80:
            tokens = torch.randint(256, tokens.shape, generator=torch.Generator().manual_seed(0))
        return tokens

    monkeypatch.setattr(module.DataMix, "batch", noise)


def test_a_spike_is_told_and_may_be_skipped(run: Run, request: pytest.FixtureRequest) -> None:
    clean = run(skip_spikes=True)
    assert clean.metrics["guards"] == {
        "spikes": 0,
        "spikes_at": [],
        "skipped_batches": 0,
        "non_finite_gradients": 0,
    }
    request.getfixturevalue("poisoned")
    told = run().metrics["guards"]
    assert (told["spikes"], told["spikes_at"], told["skipped_batches"]) == (1, [81], 0)
    skipped = run(skip_spikes=True)
    assert skipped.metrics["guards"] == {**told, "skipped_batches": 1}
    # One step less, and nothing learned from noise.
    assert skipped.output == pytest.approx(clean.output, abs=0.05)


@pytest.fixture
def spoil_gradients(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the first so many gradients after the warm-up infinite."""

    def spoil_gradients(n: int) -> None:
        transformer, calls = module.Transformer, iter(range(10**6))

        def spoiled(*arguments: Any) -> module.Transformer:
            model = transformer(*arguments)
            model.embedding.register_hook(
                lambda gradient: gradient * (torch.inf if 1 <= next(calls) <= n else 1)
            )
            return model

        monkeypatch.setattr(module, "Transformer", spoiled)

    return spoil_gradients


def test_a_few_gradients_that_are_not_finite_are_skipped(
    run: Run, spoil_gradients: Callable[[int], None]
) -> None:
    spoil_gradients(3)
    result = run()
    assert result.metrics["guards"]["non_finite_gradients"] == 3
    assert result.metrics["guards"]["skipped_batches"] == 3
    assert result.metrics["final_train_loss"] < 3


def test_many_of_them_end_the_run(run: Run, spoil_gradients: Callable[[int], None]) -> None:
    spoil_gradients(90)
    expected = "diverged: gradient number 6 was not finite at step 6 of 96"
    with pytest.raises(BadConfigurationError, match=expected):
        run()


def test_dropout_is_of_training_alone_and_the_same_however_the_batch_is_split(run: Run) -> None:
    whole = run(dropout=0.2)
    parts = run(dropout=0.2, micro_batch_size=1)
    assert parts.output == pytest.approx(whole.output, abs=1e-3)
    without = run()
    assert without.metrics["final_train_loss"] < whole.metrics["final_train_loss"] - 0.02
    state = torch.get_rng_state()
    run(dropout=0.2, tokens=256)
    assert torch.equal(torch.get_rng_state(), state)


def test_dropout_drops_its_share_and_other_features_at_each_place() -> None:
    from carbs.launchers.lm.model import _dropout

    x = torch.ones(6, 40, 50)
    keys = torch.arange(6)
    masks = [_dropout(x, 0.3, keys, place) == 0 for place in range(3)]
    for mask in masks:
        assert mask.float().mean().item() == pytest.approx(0.3, abs=0.01)
    both = (masks[0] & masks[1]).float().mean().item()
    assert both == pytest.approx(0.09, abs=0.01)
    rows = masks[0].float().flatten(1)
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.08
    assert _dropout(x, 0.3, keys, 0).mean().item() == pytest.approx(1, abs=0.02)


def test_what_cannot_fit_is_refused_before_it_starts(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.MemoryMeter, "of", 10_000)
    with pytest.raises(BadConfigurationError, match=r"out of memory: .* GiB were expected, and"):
        run()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("fields", [{}, {"parametrization": "mup", "head_width": 8}])
def test_every_optimizer_learns(run: Run, optimizer: str, fields: dict[str, Any]) -> None:
    result = run(optimizer=optimizer, schedule="wsd", **fields)
    assert result.metrics["final_train_loss"] < 2.5


def test_in_bfloat16_it_learns_nearly_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU."""
    whole = run()
    monkeypatch.setattr(module, "_precision", lambda _: torch.autocast("cpu", torch.bfloat16))
    half = run()
    assert half.output != whole.output
    assert half.output == pytest.approx(whole.output, abs=0.05)


def test_beside_a_gpu_batches_are_made_ahead_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make(mix: Any, step: int, **_: Any) -> list[tuple[torch.Tensor, ...]]:
        if step == 5:
            raise OSError("the disk is on fire")
        made.append(step)
        return [(torch.tensor(step),)]

    monkeypatch.setattr(module, "_micro_batches", make)
    world = World(0, 1, torch.device("cuda"))
    batches = module._batches(cast(Any, None), 2, Config(tokens=10_240), 0, world)
    for step in (2, 3, 4):
        assert next(batches) == (step, [(torch.tensor(step),)])
    assert made == [2, 3, 4]
    with pytest.raises(OSError, match="fire"):
        next(batches)


def test_a_compiled_model_learns_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it in one graph, which is compiled once; without the minutes of a C++ compiler."""
    tracing = partial(torch.compile, backend="aot_eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", tracing)
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    plain, compiled = run(tokens=4096), run(tokens=4096, compile=True)
    assert compiled.output == pytest.approx(plain.output, abs=1e-4)
