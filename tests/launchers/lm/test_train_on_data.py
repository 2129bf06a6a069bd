"""What a run is told of its data, and what it tells."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from carbs.launchers.job.protocol import BadConfigurationError, Job, Result
from carbs.launchers.lm.train import train

SMALL = {"width": 32, "depth": 1, "tokens": 16_384, "batch_size": 4, "learning_rate": 0.02}
NOUNS = ("model", "token", "batch", "layer", "width", "depth", "corpus", "mixture")
VERBS = ("learns from", "is trained on", "is drawn from", "grows with", "depends on")

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Trains on sentences and on numbers, with some of the parameters and settings changed."""
    rng = random.Random(0)
    for name in ("words", "numbers"):
        with (tmp_path / f"{name}.jsonl").open("w") as file:
            for _ in range(300):
                lines = [
                    f"The {rng.choice(NOUNS)} {rng.choice(VERBS)} the {rng.choice(NOUNS)}.\n"
                    if name == "words"
                    else f"{rng.randrange(10**12)} and then {rng.randrange(10**12)}\n"
                    for _ in range(12)
                ]
                file.write(json.dumps({"text": "".join(lines)}) + "\n")
    data = {name: str(tmp_path / f"{name}.jsonl") for name in ("words", "numbers")}

    def run(settings: dict[str, Any] | None = None, **params: Any) -> Result:
        job = Job(tmp_path, tmp_path / "shared", 0, {"data": data, **(settings or {})})
        return train({**SMALL, **params}, job)

    return run


def test_a_run_tells_of_its_data(run: Run) -> None:
    metrics = run(mix={"words": 0.75, "numbers": 0.25}).metrics
    words, numbers = metrics["data"]["words"], metrics["data"]["numbers"]
    assert words["tokens"] + numbers["tokens"] == 16_384
    assert words["tokens"] == pytest.approx(0.75 * 16_384, abs=2 * 128)
    assert words["epochs"] == words["tokens"] / words["unique_tokens"]
    assert words["documents"] + words["held_out_documents"] == 300
    assert len(words["version"]) == 16 and words["version"] != numbers["version"]
    assert metrics["tokenizer"] == "bytes bytes"
    assert set(metrics["contamination"]["questions"]) == {"words", "numbers"}
    assert run({"contamination": False}).metrics["contamination"] is None


def test_losses_are_told_in_bits_per_byte(run: Run) -> None:
    short, long = run().metrics, run(tokens=65_536).metrics
    for metrics in (short, long):
        # The starts of documents are tokens and no bytes: hence not the same.
        per_token = metrics["final_train_loss"] / math.log(2)
        assert per_token < metrics["final_train_bits_per_byte"] < 1.01 * per_token
    for name in ("words", "numbers"):
        assert long["held_out_bits_per_byte"][name] < short["held_out_bits_per_byte"][name] - 0.05
    # Of 12 random digits after each other nothing can be known: log2 10 bits each.
    assert long["held_out_bits_per_byte"]["numbers"] > 2.0 > 0.6 * math.log2(10)
    assert long["held_out_bits_per_byte"]["words"] < 2.0


def test_a_tokenizer_of_ones_own(run: Run, tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    lines = (tmp_path / "words.jsonl").read_text().splitlines()
    tokenizer.train_from_iterator([json.loads(line)["text"] for line in lines], trainer)
    tokenizer.save(str(tmp_path / "small.json"))
    mix = {"words": 1.0, "numbers": 0.0}
    by_bytes = run(tokens=65_536, mix=mix).metrics
    by_tokens = run({"tokenizer": str(tmp_path / "small.json")}, mix=mix).metrics
    assert by_tokens["tokenizer"].startswith("small ")
    assert by_tokens["data"]["words"]["bytes_per_token"] > 4
    # Less text is seen where tokens are longer; per byte, both come to about the same.
    ours, theirs = (m["held_out_bits_per_byte"]["words"] for m in (by_tokens, by_bytes))
    assert by_tokens["final_train_loss"] > 1.5 * by_bytes["final_train_loss"]
    assert ours == pytest.approx(theirs, rel=0.5)


def test_a_second_phase_is_trained_on_its_own_mix(run: Run) -> None:
    plain = {"words": 1.0, "numbers": 0.0}
    result = run(mix=plain, mid_mix={"words": 0.2, "numbers": 0.8}, mid_start=0.5)
    data = result.metrics["data"]
    assert data["numbers"]["tokens"] == pytest.approx(0.4 * 16_384, abs=2 * 128)
    before = run(mix=plain).metrics["held_out_bits_per_byte"]["numbers"]
    assert result.metrics["held_out_bits_per_byte"]["numbers"] < before - 0.3
    with pytest.raises(ValueError, match="'z'"):
        run(mid_mix={"z": 1.0})


def test_more_epochs_than_allowed_are_refused_before_training(run: Run) -> None:
    assert run({"max_epochs": 1}).metrics["data"]["words"]["epochs"] < 1
    with pytest.raises(BadConfigurationError, match=r"too many epochs: .*max_epochs is 1") as bad:
        run({"max_epochs": 1}, tokens=10**9)
    assert bad.value.cost == 0.0


def test_text_that_gives_no_questions_needs_some(run: Run, tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"a document of one line, the {i}-th"}) for i in range(200)]
    (tmp_path / "flat.jsonl").write_text("\n".join(lines))
    data = {"flat": str(tmp_path / "flat.jsonl")}
    with pytest.raises(ValueError, match=r"there is no question.*setting 'questions'"):
        run({"data": data})
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"prompt": "a doc", "choices": ["ument", "tor"], "answer": 0}\n')
    result = run({"data": data, "questions": {"asked": str(asked)}})
    assert set(result.metrics["evaluations"]) == {"asked"}
