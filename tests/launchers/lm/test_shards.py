"""Documents are tokenized once, whoever wants them and whatever was killed meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from carbs.launchers.lm.data import parallel, shards, sources
from carbs.launchers.lm.data.corpus import Component, prepare
from carbs.launchers.lm.data.sources import Source
from carbs.launchers.lm.data.tokenizer import load_tokenizer

N_PER_PIECE = 20
TEXTS = [f"The {i}-th of the documents counts {' '.join(map(str, range(i)))}." for i in range(200)]
GO_ON = """
import sys
from pathlib import Path
from carbs.launchers.lm.data import shards, sources
from carbs.launchers.lm.data.corpus import prepare

sources.PIECE_BYTES = 9_000
documents, read = sources.Piece.documents, []

def then_hang(self):
    read.append(self)
    for i, document in enumerate(documents(self)):
        if len(read) == 4 and i == 3:
            sys.stdin.read()
        yield document

sources.Piece.documents = then_hang
shards._BATCH_CHARACTERS = 1
prepare({"mine": sys.argv[1]}, Path(sys.argv[2]))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return tmp_path


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Byte-level BPE, as most have today, that also asks for a truncation."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=["<pad>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.enable_truncation(5)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def content(component: Component) -> list[bytes]:
    return [shard.tokens(side).tobytes() for shard in component.shards for side in _SIDES]


_SIDES = ("train", "held_out")


def test_what_is_killed_halfway_goes_on_at_the_next_shard(
    folder: Path, monkeypatch: pytest.MonkeyPatch, wait_until: Callable[..., None]
) -> None:
    where, shared = folder / "mine", folder / "shared"
    process = subprocess.Popen(
        [sys.executable, "-c", GO_ON, str(where), str(shared)], stdin=subprocess.PIPE
    )

    def is_in_the_fourth() -> bool:
        assert process.poll() is None
        found = list(shared.glob("shards/*.part/*.jsonl"))
        return len(list(shared.glob("shards/*/shard.json"))) == 3 and bool(found)

    wait_until(is_in_the_fourth, "the fourth shard")
    process.kill()
    process.communicate()
    done = {path: path.stat().st_mtime_ns for path in shared.glob("shards/*/shard.json")}
    written = []
    write = shards._write_shard

    def note(*args: Any) -> None:
        written.append(args[-1])
        write(*args)

    monkeypatch.setattr(shards, "_write_shard", note)
    monkeypatch.setattr(sources, "PIECE_BYTES", 9_000)
    component = prepare({"mine": str(where)}, shared).components["mine"]
    assert len(component.shards) == len(done) + len(written) > 6
    assert {path: path.stat().st_mtime_ns for path in done} == done
    afresh = prepare({"mine": str(where)}, folder / "afresh").components["mine"]
    assert content(component) == content(afresh)


def test_several_processes_make_what_one_makes(
    folder: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "PIECE_BYTES", 9_000)
    args = ({"mine": str(folder / "mine")},)
    alone = prepare(*args, folder / "alone", str(tokenizer_file), n_processes=1)
    monkeypatch.setattr(parallel, "_ALONE_BYTES", 0)
    together = prepare(*args, folder / "together", str(tokenizer_file), n_processes=2)
    assert content(together.components["mine"]) == content(alone.components["mine"])
    assert together.components == {"mine": _at(folder / "together", alone.components["mine"])}
    asked, also_asked = (
        {name: path.read_bytes() for name, path in corpus.question_sets.items()}
        for corpus in (alone, together)
    )
    assert asked == also_asked


def _at(folder: Path, component: Component) -> Component:
    moved = tuple(
        shard.model_copy(update={"folder": folder / "shards" / shard.folder.name})
        for shard in component.shards
    )
    return Component(component.name, component.pieces, moved, component.held_out_below)


def test_an_error_in_another_process_ends_the_work_and_names_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (folder / "mine" / "a.jsonl").open("a") as file:
        file.write("no JSON\n")
    monkeypatch.setattr(sources, "PIECE_BYTES", 9_000)
    monkeypatch.setattr(parallel, "_ALONE_BYTES", 0)
    with pytest.raises(ValueError, match=r"'mine'.*a.jsonl line 201 is no JSON object"):
        prepare({"mine": str(folder / "mine")}, folder / "shared", n_processes=2)


def test_a_tokenizers_tokens_are_those_of_its_library(folder: Path, tokenizer_file: Path) -> None:
    with (folder / "mine" / "a.jsonl").open("a") as file:
        file.write(json.dumps({"text": "It says <|endoftext|> in the text."}) + "\n")
    library = Tokenizer.from_file(str(tokenizer_file))
    library.no_truncation()
    end = library.token_to_id("<|endoftext|>")
    data = {"mine": Source(path=str(folder / "mine"), held_out=0.2)}
    corpus = prepare(data, folder / "shared", str(tokenizer_file))
    component = corpus.components["mine"]
    assert corpus.tokenizer.vocab_size == library.get_vocab_size()
    decoded: list[str] = []
    for side in _SIDES:
        tokens = component.tokens(side)
        read = tokens.read(0, len(tokens))
        assert read.dtype == np.uint16
        starts = np.flatnonzero(read == end)
        parts = [part.tolist()[1:] for part in np.split(read, starts)[1:]]
        texts = [library.decode(part) for part in parts]
        assert [library.encode(text).ids for text in texts[:-1]] == parts[:-1]
        told = component.side(side)
        assert (told.documents, told.tokens) == (len(texts), len(read))
        assert told.bytes == sum(len(text.encode()) for text in texts)
        decoded += texts
    # Where a text spells the special token, it does not begin a new document.
    assert sorted(decoded) == sorted([*TEXTS, "It says <|endoftext|> in the text."])


def test_bytes_and_a_tokenizer_share_a_version_but_no_shards(
    folder: Path, tokenizer_file: Path
) -> None:
    data = {"mine": str(folder / "mine")}
    by_bytes = prepare(data, folder / "shared").components["mine"]
    by_tokens = prepare(data, folder / "shared", str(tokenizer_file.parent)).components["mine"]
    assert by_bytes.version == by_tokens.version
    assert not {s.folder for s in by_bytes.shards} & {s.folder for s in by_tokens.shards}
    assert by_tokens.facts()["bytes_per_token"] > 1.5 > by_bytes.facts()["bytes_per_token"]


def test_a_file_that_is_touched_is_not_tokenized_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = {"mine": str(folder / "mine")}
    before = prepare(data, folder / "shared")
    (folder / "mine" / "a.jsonl").touch()
    monkeypatch.setattr(shards, "_write_shard", None)  # would raise
    assert prepare(data, folder / "shared") == before


@pytest.mark.parametrize(
    ("content", "named"),
    [(None, "there is no .*tokenizer.json"), ("{}", "is no file of the tokenizers library")],
)
def test_a_tokenizer_that_is_none_is_named(tmp_path: Path, content: str | None, named: str) -> None:
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=named):
        load_tokenizer(str(path))


def test_progress_is_told_in_a_log_now_and_then(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "PIECE_BYTES", 9_000)
    prepare({"mine": str(folder / "mine")}, folder / "quick")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(parallel, "_SAY_EVERY_S", 0.0)
    prepare({"mine": str(folder / "mine")}, folder / "slow")
    told = capsys.readouterr().err.splitlines()
    assert len(told) > 6
    assert told[0].startswith("tokenizing mine: 0 of 0 MB, ")
