"""The order of the sequences follows from the seed and the place alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from carbs.launchers.job.protocol import BadConfigurationError
from carbs.launchers.lm.data.corpus import Corpus, prepare
from carbs.launchers.lm.data.mix import DataMix, Phase

SEQ_LEN = 16
WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three components, of a few thousand tokens, each with an alphabet of its own."""
    root = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for name, first in zip("abc", b"aAn", strict=True):
        (root / name).mkdir()
        for i in range(6):
            letters = bytes((first + rng.integers(12, size=600)).tolist())
            (root / name / f"{i}.txt").write_bytes(letters)
    return prepare({name: str(root / name) for name in "abc"}, root / "shared")


def source_of(row: torch.Tensor) -> str:
    letter = int(row.max())  # NUL stands between documents
    return next(name for name, last in (("b", "Z"), ("a", "m"), ("c", "z")) if letter <= ord(last))


def test_a_place_has_one_sequence_however_it_is_come_by(corpus: Corpus) -> None:
    def new(weights: dict[str, float] = WEIGHTS, seed: int = 3) -> DataMix:
        return DataMix(corpus, weights, SEQ_LEN, seed)

    whole = new().sequences(0, 9_000)  # over several blocks of places
    assert whole.shape == (9_000, SEQ_LEN + 1)
    # Resumed at any place, by another mix object; in batches of other sizes.
    for start, stop in ((1, 2), (4_095, 4_098), (8_990, 9_000), (500, 600)):
        assert new().sequences(start, stop).equal(whole[start:stop])
    mix = new()
    assert torch.cat([mix.batch(step, 7) for step in range(40)]).equal(whole[:280])
    # By eight devices, of which each reads its own part of every batch.
    for step in range(3):
        parts = [new().sequences(64 * step + 8 * i, 64 * step + 8 * i + 8) for i in range(8)]
        assert torch.cat(parts).equal(whole[64 * step : 64 * step + 64])
    assert not new(seed=4).sequences(0, 20).equal(whole[:20])
    assert new(dict(reversed(WEIGHTS.items()))).sequences(0, 20).equal(whole[:20])


def test_every_sequence_comes_once_before_any_comes_again(corpus: Corpus) -> None:
    tokens = corpus.components["a"].tokens()
    everything = tokens.read(0, len(tokens))
    assert b"\0" in everything.tobytes()
    n = len(tokens) // SEQ_LEN
    mix = DataMix(corpus, {"a": 1.0}, SEQ_LEN, seed=1)
    first, second = mix.sequences(0, n)[:, 1:], mix.sequences(n, 2 * n)[:, 1:]
    for epoch in (first, second):
        read = Counter(epoch.flatten().tolist())
        assert read.total() == n * SEQ_LEN
        # All that is not read are the few tokens that make no sequence.
        assert (Counter(everything.tolist()) - read).total() < SEQ_LEN
        assert len({tuple(row) for row in epoch.tolist()}) == n
    assert not first.equal(second)
    # The next token of each is the one that follows in the text.
    text = everything.tobytes() * 2
    assert all(bytes(row.tolist()) in text for row in mix.sequences(0, n))


def test_a_second_phase_has_a_mix_of_its_own(corpus: Corpus) -> None:
    plain = DataMix(corpus, {"a": 1.0}, SEQ_LEN, seed=1)
    mix = DataMix(corpus, {"a": 1.0}, SEQ_LEN, 1, [Phase(300, {"a": 0.25, "b": 0.75})])
    assert mix.sequences(0, 300).equal(plain.sequences(0, 300))
    later = [source_of(row) for row in mix.sequences(300, 500)]
    assert later.count("b") == pytest.approx(150, abs=2)
    # What is read on of a goes on where the first phase was.
    rows = [row for row in mix.sequences(300, 500) if source_of(row) == "a"]
    assert torch.stack(rows).equal(plain.sequences(300, 300 + len(rows)))
    usage = mix.usage(0, 500)
    assert usage["b"]["tokens"] == later.count("b") * SEQ_LEN
    assert sum(used["tokens"] for used in usage.values()) == 500 * SEQ_LEN


def test_tokens_and_epochs_are_what_was_read(corpus: Corpus) -> None:
    mix = DataMix(corpus, WEIGHTS, SEQ_LEN, seed=2)
    n = 5_000
    read = Counter(source_of(row) for row in mix.sequences(0, n))
    facts = mix.facts(n)
    for name, component in corpus.components.items():
        assert facts[name]["tokens"] == read[name] * SEQ_LEN
        assert facts[name]["unique_tokens"] == len(component.tokens())
        assert facts[name]["epochs"] == pytest.approx(
            read[name] * SEQ_LEN / len(component.tokens())
        )
        assert facts[name]["version"] == component.version
    alone = DataMix(corpus, {"a": 1.0}, SEQ_LEN, seed=2).facts(n)
    assert (alone["b"]["tokens"], alone["b"]["epochs"]) == (0, 0.0)


def test_more_epochs_than_allowed_are_refused(corpus: Corpus) -> None:
    mix = DataMix(corpus, {"a": 0.9, "b": 0.1}, SEQ_LEN, seed=2)
    epochs = mix.usage(0, 1_000)["a"]["epochs"]
    mix.refuse_repetition(1_000, epochs + 0.01)
    mix.refuse_repetition(1_000, None)
    with pytest.raises(BadConfigurationError, match=r"too many epochs: .* of component 'a'") as bad:
        mix.refuse_repetition(1_000, epochs - 0.01)
    assert bad.value.cost == 0.0
