"""Where a component's documents lie, and how they are read.

A component is ``builtin``, or a folder or glob of files of any of these kinds:

    text      a document a file; what has none of the endings below
    jsonl     a document a line: .jsonl, .ndjson, .json
    parquet   a document a row: .parquet
    arrow     a document a row: a folder that the ``datasets`` library has saved

Text and JSON lines may be compressed, as .gz and .zst. A component is read in pieces, each by one
process: some small files, or a range of a large one. A compressed file is read from its beginning,
and so is one piece.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import itertools
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field

from carbs.launchers.lm.data import builtin
from carbs.launchers.lm.data.tokenizer import START

BUILTIN: Literal["builtin"] = "builtin"
PIECE_BYTES = 16_000_000

Kind = Literal["builtin", "text", "jsonl", "parquet", "arrow"]


class Source(BaseModel):
    """A component, as the settings describe it.

    Attributes:
        path: ``"builtin"``, or a folder or glob of files.
        format: of all files; told from their names by default.
        text_field: of JSON lines, Parquet and datasets: which key or column is the text.
        held_out: share of the documents that are not trained on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    format: Literal["text", "jsonl", "parquet", "arrow"] | None = None
    text_field: str = "text"
    held_out: float = Field(default=0.1, gt=0, lt=1)


class Document(NamedTuple):
    """A text, and the key that decides which side of the split it is on."""

    text: str
    key: str


@dataclass(frozen=True)
class Piece:
    """What one process reads of a component: documents that follow each other.

    Attributes:
        component: its name.
        kind: of the files.
        paths: of the files; one, but for text.
        span: of a file that is read in part, from and to: bytes of JSON lines, row groups of
            Parquet, batches of a dataset; None for all of it.
        text_field: of the records.
        size: bytes on the disk, about.
    """

    component: str
    kind: Kind
    paths: tuple[Path, ...] = ()
    span: tuple[int, int] | None = None
    text_field: str = "text"
    size: int = 0

    def documents(self) -> Iterator[Document]:
        """The documents, in their order; none is empty, and none stands there twice.

        Raises:
            ValueError: a file is not what it should be. The message names it, and the component.
        """
        seen: set[bytes] = set()
        for document in self._read():
            digest = hashlib.blake2b(document.text.encode(), digest_size=16).digest()
            if document.text and digest not in seen:
                seen.add(digest)
                yield document

    def content_hash(self) -> str:
        """Of what is read, and of nothing else: not of the files' names, nor of their dates."""
        found = hashlib.sha256(f"{self.kind} {self.text_field}".encode())
        if self.kind == BUILTIN:
            found.update(f"{self.component} {builtin.VERSION}".encode())
        for path in self.paths:
            found.update(b"\0")
            for part in self._raw(path):
                found.update(part)
        return found.hexdigest()

    def _read(self) -> Iterator[Document]:
        if self.kind == BUILTIN:
            # Their names decide: the docstrings of a module stay together.
            yield from _unique(builtin.named_texts(self.component))
            return
        read = {
            "text": self._read_files,
            "jsonl": self._read_lines,
            "parquet": self._read_rows,
            "arrow": self._read_rows,
        }[self.kind]
        for text in read():
            yield Document(text, text)

    def _read_files(self) -> Iterator[str]:
        for path in self.paths:
            with self._opened(path) as file:
                content = file.read()
            try:
                text = content.decode()
            except UnicodeDecodeError as error:
                raise self._error(path, "is not UTF-8 text") from error
            if START in text:
                raise self._error(path, "is not text, it holds NUL bytes")
            yield text

    def _read_lines(self) -> Iterator[str]:
        for path in self.paths:
            with self._opened(path) as file:
                place, end = self.span or (0, -1)
                if place:
                    file.seek(place)
                # Not tell(), which is slow.
                for line in file:
                    if place == end:
                        break
                    place += len(line)
                    if line.strip():
                        yield self._text_of(line, path, place)

    def _text_of(self, line: bytes, path: Path, end: int) -> str:
        try:
            record = pydantic_core.from_json(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            what = "is no JSON object: correct it, or say that the file is one text, format: text"
            raise self._line_error(path, end, what)
        if self.text_field not in record:
            known = ", ".join(record) or "nothing"
            what = f"has no {self.text_field!r} but {known}: say text_field: NAME"
            raise self._line_error(path, end, what)
        text = record[self.text_field]
        if not isinstance(text, str | None):
            raise self._line_error(path, end, f"has no text under {self.text_field!r}")
        return (text or "").replace(START, "")

    def _line_error(self, path: Path, end: int, problem: str) -> ValueError:
        with self._opened(path) as file:
            number = len(file.read(end).splitlines())
        return self._error(path, f"line {number} {problem}")

    def _read_rows(self) -> Iterator[str]:
        for column in self._columns():
            for text in column.to_pylist():
                yield (text or "").replace(START, "")

    def _columns(self) -> Iterator[Any]:
        """The text of a Parquet file or a dataset, some thousand rows at a time."""
        (path,) = self.paths
        if self.kind == "parquet":
            from pyarrow import parquet

            with parquet.ParquetFile(path) as file:
                self._require_field(path, file.schema_arrow)
                groups = range(*(self.span or (0, file.num_row_groups)))
                batches = file.iter_batches(4096, row_groups=groups, columns=[self.text_field])
                yield from (batch.column(0) for batch in batches)
        else:
            with _arrow_batches(path) as batches:
                self._require_field(path, batches.schema)
                first, end = self.span or (0, None)
                for i, batch in enumerate(batches):
                    if first <= i and (end is None or i < end):
                        yield batch.column(self.text_field)

    def _require_field(self, path: Path, schema: Any) -> None:
        from pyarrow import types

        if self.text_field not in schema.names:
            known = ", ".join(schema.names)
            raise self._error(
                path, f"has no column {self.text_field!r} but {known}: say text_field: NAME"
            )
        kind = schema.field(self.text_field).type
        if not (types.is_string(kind) or types.is_large_string(kind)):
            raise self._error(path, f"has {kind} in its column {self.text_field!r}, and no text")

    def _raw(self, path: Path) -> Iterator[Any]:
        """The bytes that decide what is read."""
        if self.kind == "arrow":
            for column in self._columns():
                yield from (memoryview(buffer) for buffer in column.buffers() if buffer)
                yield f"{column.offset} {len(column)}".encode()
            return
        spans = [self.span or (0, path.stat().st_size)]
        if self.kind == "parquet":
            spans = self._parquet_spans(path)
        with path.open("rb") as file:
            for start, end in spans:
                file.seek(start)
                while start < end and (part := file.read(min(end - start, 1 << 20))):
                    start += len(part)
                    yield part

    def _parquet_spans(self, path: Path) -> list[tuple[int, int]]:
        """From and to: the bytes of the text in each row group."""
        from pyarrow import parquet

        with parquet.ParquetFile(path) as file:
            self._require_field(path, file.schema_arrow)
            groups = range(*(self.span or (0, file.num_row_groups)))
            spans = []
            for column in _text_chunks(file, groups, self.text_field):
                start = column.dictionary_page_offset or column.data_page_offset
                spans.append((start, start + column.total_compressed_size))
        return spans

    @contextmanager
    def _opened(self, path: Path) -> Iterator[IO[bytes]]:
        opened: Any = {".gz": gzip.open, ".zst": _open_zstandard}.get(path.suffix, open)
        with opened(path, "rb") as file:
            try:
                yield file
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise self._error(path, f"is damaged or cut off: {error}") from error

    def _error(self, path: Path, problem: str) -> ValueError:
        return ValueError(f"component {self.component!r}: {path} {problem}")


def pieces(component: str, source: Source) -> list[Piece]:
    """All of a component, in an order that depends on the files' names alone.

    Raises:
        ValueError: the component is unknown, or has no files.
    """
    if not re.fullmatch(r"[\w-]+", component):
        raise ValueError(f"component {component!r}: use letters, digits, _ and - in its name")
    if source.path == BUILTIN:
        if component not in builtin.COMPONENTS:
            known = ", ".join(builtin.COMPONENTS)
            raise ValueError(
                f"unknown component {component!r}: {known} are built in; for your own data name a "
                "folder or glob of files"
            )
        return [Piece(component, BUILTIN)]
    found: list[Piece] = []
    small: list[Path] = []
    for kind, path in _files(component, source):
        if kind == "text":
            small.append(path)
        else:
            spans = _spans(kind, path, source.text_field)
            found += [
                Piece(component, kind, (path,), span, source.text_field, size)
                for span, size in spans
            ]
    return _grouped(component, small) + found


def fingerprint(component: str, source: Source) -> list[Any]:
    """Changes when a file does, as far as its size and its date tell; quick."""
    if source.path == BUILTIN:
        return [component, builtin.VERSION, source.held_out]
    stats = ((path, path.stat()) for _, path in _files(component, source))
    return [
        *(component, source.model_dump(mode="json")),
        *([str(path.resolve()), stat.st_size, stat.st_mtime_ns] for path, stat in stats),
    ]


def _files(component: str, source: Source) -> list[tuple[Kind, Path]]:
    root = Path(source.path)
    if (root / "dataset_dict.json").is_file():
        splits = json.loads((root / "dataset_dict.json").read_text())["splits"]
        raise ValueError(
            f"component {component!r}: {root} is a dataset with the splits {', '.join(splits)}: "
            f"name one, {root / splits[0]}"
        )
    if (root / "dataset_info.json").is_file() and (root / "state.json").is_file():
        saved = json.loads((root / "state.json").read_text())["_data_files"]
        return [("arrow", root / file["filename"]) for file in saved]
    if root.is_dir():
        paths = [path for path in root.rglob("*") if path.is_file()]
    else:
        # Not Path.glob, which takes no absolute pattern.
        names = glob.glob(source.path, recursive=True)  # noqa: PTH207
        paths = [path for path in map(Path, names) if path.is_file()]
    if not paths:
        raise ValueError(
            f"component {component!r}: {source.path} has no files: name a folder, or a glob such "
            "as 'text/**/*.jsonl'"
        )
    return [(source.format or _kind(path), path) for path in sorted(paths)]


def _kind(path: Path) -> Kind:
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".gz", ".zst")]
    match suffixes[-1:]:
        case [".jsonl" | ".ndjson" | ".json"]:
            return "jsonl"
        case [".parquet"]:
            return "parquet"
        case [".arrow"]:
            return "arrow"
    return "text"


def _grouped(component: str, paths: Iterable[Path]) -> list[Piece]:
    """Small files together."""
    groups: list[list[Path]] = []
    sizes: list[int] = []
    for path in paths:
        size = path.stat().st_size
        if not groups or sizes[-1] + size > PIECE_BYTES:
            groups.append([])
            sizes.append(0)
        groups[-1].append(path)
        sizes[-1] += size
    return [
        Piece(component, "text", tuple(group), size=size)
        for group, size in zip(groups, sizes, strict=True)
    ]


def _spans(kind: Kind, path: Path, text_field: str) -> list[tuple[tuple[int, int] | None, int]]:
    """A file's ranges of about :data:`PIECE_BYTES`, each with its bytes."""
    size = path.stat().st_size
    if path.suffix in (".gz", ".zst") or size <= PIECE_BYTES:
        return [(None, size)]
    if kind == "jsonl":
        edges = [0]
        with path.open("rb") as file:
            while edges[-1] < size:
                file.seek(edges[-1] + PIECE_BYTES)
                file.readline()  # to the end of the line
                edges.append(min(file.tell(), size))
        return [((a, b), b - a) for a, b in itertools.pairwise(edges)]
    return _whole_parts(_part_sizes(kind, path, text_field))


def _part_sizes(kind: Kind, path: Path, text_field: str) -> list[int]:
    if kind == "arrow":
        with _arrow_batches(path) as batches:
            return [batch.nbytes for batch in batches]
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        groups = range(file.num_row_groups)
        chunks = _text_chunks(file, groups, text_field)
        return [chunk.total_uncompressed_size for chunk in chunks] or [0] * len(groups)


def _whole_parts(sizes: list[int]) -> list[tuple[tuple[int, int] | None, int]]:
    """Row groups or batches that follow each other, together up to a piece."""
    found: list[tuple[tuple[int, int] | None, int]] = []
    first = together = 0
    for i, size in enumerate(sizes):
        if together and together + size > PIECE_BYTES:
            found.append(((first, i), together))
            first, together = i, 0
        together += size
    return [*found, ((first, len(sizes)), together)]


def _text_chunks(file: Any, groups: Iterable[int], text_field: str) -> list[Any]:
    """What a Parquet file says of its text, a row group each; none if it has no such column."""
    names = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)]
    if text_field not in names:
        return []
    column = names.index(text_field)
    return [file.metadata.row_group(group).column(column) for group in groups]


@contextmanager
def _arrow_batches(path: Path) -> Iterator[Any]:
    """The record batches of a file as ``datasets`` writes it: a stream, mapped into memory."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as batches:
        yield batches


def _open_zstandard(path: Path, mode: str) -> Any:
    try:
        from compression import zstd  # Python 3.14
    except ModuleNotFoundError:
        try:
            from backports import zstd
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{path} needs the library backports.zstd: pip install 'carbs-search[data]'"
            ) from error
    return zstd.open(path, mode)


def _unique(named_texts: Iterable[tuple[str, str]]) -> Iterator[Document]:
    """Each text once, of its names under one for which it is trained on, if there is any."""
    names: dict[str, str] = {}
    for name, text in named_texts:
        names[text] = max(name, names.get(text, name), key=place_of)
    return (Document(text, name) for text, name in names.items())


def place_of(key: str) -> int:
    """A document's place from 0 to 2^64, by its key: those below a share of that are held out."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")


def sources(data: Mapping[str, str | Source]) -> dict[str, Source]:
    """The settings' components in the order of their names, short forms written out.

    Raises:
        ValueError: there is none.
    """
    if not data:
        raise ValueError(f"no data: name a component, such as {builtin.COMPONENTS[0]!r}")
    return {
        name: where if isinstance(where, Source) else Source(path=where)
        for name, where in sorted(data.items())
    }
