"""What is read of each kind of file, whole and in pieces."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from backports import zstd
from datasets import Dataset, DatasetDict
from pyarrow import parquet

from carbs.launchers.lm.data import sources as module
from carbs.launchers.lm.data.corpus import prepare
from carbs.launchers.lm.data.sources import Source, pieces

TEXTS = [f"document {i}: {'größer ' * (i % 7)}\nand a line" for i in range(40)]


def read(path: Path | str, **fields: str) -> list[str]:
    found = pieces("mine", Source(path=str(path), **fields))  # type: ignore[arg-type]
    return [document.text for piece in found for document in piece.documents()]


def lines(texts: list[str], field: str = "text") -> bytes:
    return "".join(json.dumps({field: text, "id": 1}) + "\n" for text in texts).encode()


def write_text(path: Path, texts: list[str]) -> None:
    for i, text in enumerate(texts):
        (path / f"{i:02}.txt").write_text(text)


def write_two_frames(path: Path, texts: list[str]) -> None:
    """As parallel compressors write: each half compressed by itself."""
    content = lines(texts)
    halves = zstd.compress(content[:700]), zstd.compress(content[700:])
    (path / "a.jsonl.zst").write_bytes(b"".join(halves))


def save(path: Path, columns: dict[str, list[str]], **options: int) -> None:
    Dataset.from_dict(columns).save_to_disk(path, **options)


KINDS: dict[str, Callable[[Path, list[str]], object]] = {
    "text": write_text,
    "gz text": lambda path, texts: [
        (path / f"{i:02}.txt.gz").write_bytes(gzip.compress(text.encode()))
        for i, text in enumerate(texts)
    ],
    "jsonl": lambda path, texts: (path / "a.jsonl").write_bytes(lines(texts)),
    "json": lambda path, texts: (path / "a.json").write_bytes(
        lines(texts)[:-1]
    ),  # no newline at the end
    "gz": lambda path, texts: (path / "a.jsonl.gz").write_bytes(gzip.compress(lines(texts))),
    "zst": write_two_frames,
    "parquet": lambda path, texts: parquet.write_table(
        pyarrow.table({"id": range(40), "text": texts}), path / "a.parquet", row_group_size=7
    ),
    "dataset": lambda path, texts: Dataset.from_dict({"text": texts}).save_to_disk(
        path, num_shards=3
    ),
}


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_documents_of_every_kind(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path, TEXTS)
    assert read(tmp_path) == TEXTS
    if kind != "dataset":
        assert read(f"{tmp_path}/*") == TEXTS


@pytest.mark.parametrize("kind", ["text", "jsonl", "parquet"])
def test_what_is_read_in_pieces_is_the_same_and_each_has_a_hash_of_its_own(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    KINDS[kind](tmp_path, TEXTS)
    monkeypatch.setattr(module, "PIECE_BYTES", 300)
    found = pieces("mine", Source(path=str(tmp_path)))
    assert len(found) > 3
    assert read(tmp_path) == TEXTS
    hashes = [piece.content_hash() for piece in found]
    assert len(set(hashes)) == len(hashes)


def test_a_dataset_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, {"text": TEXTS * 60})  # of batches of a thousand
    monkeypatch.setattr(module, "PIECE_BYTES", 300)
    found = pieces("mine", Source(path=str(tmp_path)))
    assert len(found) == 3
    assert len({piece.content_hash() for piece in found}) > 1
    # A thousand rows are 25 times the same forty.
    assert [len(list(piece.documents())) for piece in found] == [40, 40, 40]


@pytest.mark.parametrize("kind", KINDS)
def test_a_hash_is_of_the_content_alone(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a").mkdir()
    KINDS[kind](tmp_path / "a", TEXTS)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    of_a, of_b = (
        [piece.content_hash() for piece in pieces("mine", Source(path=str(tmp_path / name)))]
        for name in "ab"
    )
    assert of_a == of_b
    shutil.rmtree(tmp_path / "b")
    (tmp_path / "b").mkdir()
    KINDS[kind](tmp_path / "b", ["another", *TEXTS[1:]])
    assert [p.content_hash() for p in pieces("mine", Source(path=str(tmp_path / "b")))] != of_a


def test_the_text_may_have_another_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines(TEXTS, "content"))
    assert read(tmp_path, text_field="content") == TEXTS
    with pytest.raises(ValueError, match=r"'mine': .*a.jsonl line 1 has no 'text' but content, id"):
        read(tmp_path)


def test_what_is_no_document_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"text": "one"}\n\n{"text": null}\n{"text": ""}\n{"text": "t\\u0000wo"}\n{"text": "one"}\n'
    )
    assert read(tmp_path) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        (
            "a.jsonl",
            b'{"text": "a"}\n{"text": \n',
            r"a.jsonl line 2 is no JSON object.*format: text",
        ),
        ("a.jsonl", b'{"text": "a"}\n[1]\n', r"a.jsonl line 2 is no JSON object"),
        ("a.jsonl", b'{"text": 1}\n', r"a.jsonl line 1 has no text under 'text'"),
        ("a.txt", b"\xff\xfe", r"a.txt is not UTF-8 text"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99)[:-9], r"a.jsonl.gz is damaged"),
        ("a.jsonl.zst", zstd.compress(b'{"text": "a"}\n' * 99)[:-9], r"a.jsonl.zst is damaged"),
    ],
)
def test_an_error_names_the_component_the_file_and_the_line(
    tmp_path: Path, name: str, content: bytes, named: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"component 'mine': .*{named}"):
        read(tmp_path)


def test_what_looks_like_something_else_may_be_text(tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{\n "name": "mine"\n}\n')
    assert read(tmp_path, format="text") == ['{\n "name": "mine"\n}\n']


def test_a_columns_name_and_kind_are_looked_at(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.table({"body": ["a"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet has no column 'text' but body, id"):
        read(tmp_path)
    with pytest.raises(ValueError, match=r"a.parquet has int64 in its column 'id'"):
        read(tmp_path, text_field="id")
    assert read(tmp_path, text_field="body") == ["a"]


def test_of_a_dataset_with_splits_one_is_to_be_named(tmp_path: Path) -> None:
    part = Dataset.from_dict({"text": TEXTS})
    DatasetDict({"train": part, "test": part}).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match=rf"splits train, test: name one, {tmp_path}/train"):
        read(tmp_path)
    assert read(tmp_path / "train") == TEXTS


def test_a_library_that_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_two_frames(tmp_path, TEXTS)
    monkeypatch.setitem(sys.modules, "compression", None)
    monkeypatch.setitem(sys.modules, "backports", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"backports.zstd: pip install 'carbs-search\[data"
    ):
        read(tmp_path)


def test_a_documents_side_does_not_depend_on_what_else_there_is(tmp_path: Path) -> None:
    for name, texts in (("some", TEXTS[:25]), ("all", TEXTS)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in texts)
        )
    data = {name: Source(path=str(tmp_path / name), held_out=0.3) for name in ("some", "all")}
    corpus = prepare(data, tmp_path / "shared")
    held_out = {
        name: {t for shard in component.shards for t in shard.held_out_texts()}
        for name, component in corpus.components.items()
    }
    assert held_out["some"] == held_out["all"] & set(TEXTS[:25])
    assert 4 <= len(held_out["all"]) <= 20
