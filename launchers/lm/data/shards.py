"""Documents tokenized once: each piece of a component is a shard, a folder of memory-mapped files.

    train.bin        the tokens that are trained on: each document after the start token
    held_out.bin     those that are not
    held_out.jsonl   their text, a JSON string a document, for questions to be made of
    shard.json       what is in it: a :class:`Shard`

A shard's name is a hash of what was read and of how it was tokenized and split. It is written
under another name and renamed when it is whole, so a job that was killed goes on at the next shard
that is not there. Each is made under a lock: jobs that want the same ones at once share the work.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from carbs.launchers.lm.data.parallel import for_each, raise_if_orphaned
from carbs.launchers.lm.data.sources import Document, Piece, place_of
from carbs.launchers.lm.data.tokenizer import load_tokenizer, token_type

VERSION = 1  # of the files: raise it when the same input gives others
PLACES = 2**64
_BATCH_CHARACTERS = 1_000_000


class Side(BaseModel):
    """What lies on one side of the split: how many documents, tokens (starts included), bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    documents: int = 0
    tokens: int = 0
    bytes: int = 0

    def __add__(self, other: Side) -> Side:
        return Side(
            documents=self.documents + other.documents,
            tokens=self.tokens + other.tokens,
            bytes=self.bytes + other.bytes,
        )


class Shard(BaseModel):
    """A piece of a component, tokenized.

    Attributes:
        version: a hash of what was read.
        dtype: of a token.
        train, held_out: the sides of the split.
        lowest, highest: among the places of its documents; see :func:`place_of`.
        folder: of its files; not written down, as folders move.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    dtype: str
    train: Side
    held_out: Side
    lowest: int
    highest: int
    folder: Path = Field(default=Path(), exclude=True)

    def tokens(self, side: str = "train") -> NDArray[Any]:
        """Mapped from the disk, one-dimensional."""
        if not getattr(self, side).tokens:
            return np.empty(0, dtype=self.dtype)
        return np.memmap(self.folder / f"{side}.bin", dtype=self.dtype, mode="r")

    def held_out_texts(self) -> Iterator[str]:
        """The documents that are not trained on."""
        with (self.folder / "held_out.jsonl").open() as lines:
            yield from map(json.loads, lines)


def make_shards(
    pieces: Sequence[Piece],
    tokenizer: str,
    held_out_below: int,
    folder: Path,
    n_processes: int | None = None,
) -> list[Shard]:
    """A shard for each piece, in their order; those that are there are not made again.

    Args:
        pieces: of one component or several.
        tokenizer: as :func:`load_tokenizer` takes it.
        held_out_below: documents whose place is below it are held out.
        folder: of all shards.
        n_processes: see :func:`for_each`.
    """
    make = partial(_make_shard, tokenizer=tokenizer, held_out_below=held_out_below, folder=folder)
    what = f"tokenizing {', '.join(dict.fromkeys(piece.component for piece in pieces))}"
    # First what no other job is at; then what is left, which means to wait.
    shards = for_each(partial(make, wait=False), pieces, what, n_processes)
    left = [piece for piece, shard in zip(pieces, shards, strict=True) if shard is None]
    waited = iter(for_each(partial(make, wait=True), left, what, n_processes) if left else [])
    made = [shard or next(waited) for shard in shards]
    return [shard for shard in made if shard is not None]


def read_shard(folder: Path) -> Shard:
    """One that is there."""
    shard = Shard.model_validate_json((folder / "shard.json").read_text())
    return shard.model_copy(update={"folder": folder})


def _make_shard(
    piece: Piece, *, tokenizer: str, held_out_below: int, folder: Path, wait: bool
) -> Shard | None:
    """None where another job is at it, and this is not to wait."""
    version = piece.content_hash()
    how = [VERSION, version, load_tokenizer(tokenizer).version, held_out_below]
    name = hashlib.sha256(json.dumps(how).encode()).hexdigest()[:32]
    ready = folder / name
    if not ready.exists():
        locks = folder / "locks"
        locks.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(locks / name, blocking=wait):
                if not ready.exists():
                    _write_shard(piece, tokenizer, held_out_below, version, ready)
        except Timeout:
            return None
    return read_shard(ready)


def _write_shard(
    piece: Piece, tokenizer: str, held_out_below: int, version: str, ready: Path
) -> None:
    unfinished = ready.with_suffix(".part")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a job that was killed
    unfinished.mkdir()
    loaded = load_tokenizer(tokenizer)
    dtype = token_type(loaded)
    start = np.array([loaded.start], dtype=dtype)
    sides = {"train": Side(), "held_out": Side()}
    lowest, highest = PLACES, -1
    files = {name: (unfinished / f"{name}.bin").open("wb") for name in sides}
    with files["train"], files["held_out"], (unfinished / "held_out.jsonl").open("w") as texts:
        for batch in _batches(piece.documents()):
            raise_if_orphaned()
            encoded = loaded.encode([document.text for document in batch])
            found: dict[str, list[NDArray[Any]]] = {name: [] for name in sides}
            for document, tokens in zip(batch, encoded, strict=True):
                place = place_of(document.key)
                lowest, highest = min(lowest, place), max(highest, place)
                side = "held_out" if place < held_out_below else "train"
                found[side] += [start, tokens]
                size = len(document.text.encode())
                sides[side] += Side(documents=1, tokens=len(tokens) + 1, bytes=size)
                if side == "held_out":
                    texts.write(json.dumps(document.text) + "\n")
            for side, parts in found.items():
                if parts:
                    np.concatenate(parts).tofile(files[side])
    shard = Shard(
        version=version,
        dtype=dtype.name,
        train=sides["train"],
        held_out=sides["held_out"],
        lowest=lowest,
        highest=highest,
    )
    (unfinished / "shard.json").write_text(shard.model_dump_json(indent=1))
    unfinished.rename(ready)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """About a megabyte each, which is what a tokenizer likes."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
