"""From text to tokens: bytes, or any file of the ``tokenizers`` library."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

START = "\0"  # stands before every document, where tokens are bytes
BYTES = "bytes"

# What stands between documents in one vocabulary or another; the first that is there is used.
_STARTS = (
    "<|endoftext|>",
    "<|begin_of_text|>",
    "<s>",
    "<bos>",
    "<|bos|>",
    "[BOS]",
    "</s>",
    "<eos>",
)


class Tokenizer(Protocol):
    """What turns text into tokens.

    Attributes:
        name: for people.
        version: changes whenever the tokens of some text do.
        vocab_size: tokens are below it.
        start: the token that stands before every document, and so before every prompt.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def start(self) -> int: ...

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """The tokens of each text, one-dimensional, of :func:`token_type`; no start is added."""
        ...


def token_type(tokenizer: Tokenizer) -> np.dtype[Any]:
    """The smallest unsigned type that holds every token."""
    return np.min_scalar_type(tokenizer.vocab_size - 1)


def load_tokenizer(setting: str) -> Tokenizer:
    """The tokenizer that a setting names.

    Args:
        setting: ``"bytes"``, or the path of a ``tokenizer.json``, or of a folder that has one.

    Raises:
        ValueError: there is no such file, or the library cannot read it.
        ModuleNotFoundError: the library is not installed.
    """
    if setting == BYTES:
        return _BYTES
    path = Path(setting)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(
            f"setting 'tokenizer': there is no {path}: give {BYTES!r}, or a tokenizer.json of the "
            "tokenizers library"
        )
    return _load_file(path.resolve(), path.stat().st_mtime_ns)


class ByteTokenizer:
    """Every byte of the text in UTF-8 is a token."""

    name = BYTES
    version = BYTES
    vocab_size = 256
    start = 0

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        return [np.frombuffer(text.encode(), dtype=np.uint8) for text in texts]


class FileTokenizer:
    """A file of the ``tokenizers`` library.

    Text that spells a special token is text like any other. Truncation and padding that the file
    asks for are left out.
    """

    def __init__(self, path: Path) -> None:
        # One process tokenizes one shard: threads inside it would only compete.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            from tokenizers import Tokenizer as Library
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{path} needs the tokenizers library: pip install 'carbs-search[data]'"
            ) from error
        content = path.read_bytes()
        try:
            self._library = Library.from_str(content.decode())
        except Exception as error:  # the library raises no narrower one
            raise ValueError(f"{path} is no file of the tokenizers library: {error}") from error
        self._library.no_truncation()
        self._library.no_padding()
        self._library.encode_special_tokens = True
        self.name = path.parent.name if path.name == "tokenizer.json" else path.stem
        self.version = hashlib.sha256(content).hexdigest()[:16]

    @cached_property
    def _vocabulary(self) -> dict[str, int]:
        vocabulary: dict[str, int] = self._library.get_vocab(with_added_tokens=True)
        return vocabulary

    @cached_property
    def start(self) -> int:
        known = (self._vocabulary[name] for name in _STARTS if name in self._vocabulary)
        return next(known, max(self._vocabulary.values()) + 1)

    @cached_property
    def vocab_size(self) -> int:
        return max(self.start, *self._vocabulary.values()) + 1

    def encode(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        encoded = self._library.encode_batch_fast(list(texts), add_special_tokens=False)
        dtype = token_type(self)
        return [np.array(encoding.ids, dtype=dtype) for encoding in encoded]


_BYTES = ByteTokenizer()


@lru_cache(maxsize=4)
def _load_file(path: Path, _changed_ns: int) -> FileTokenizer:
    return FileTokenizer(path)
