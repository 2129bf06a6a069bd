"""The text that models train on, the held-out questions, and the mix that batches are drawn from.

Three components come with Python itself, so that a sweep runs on any machine:

    code       the standard library's source, without its docstrings
    prose      those docstrings, and the language reference
    exercises  small programs that say what they print

A user's own component is a folder of text files, or a glob. Every component is split by file before
anything else is done with it, and questions come from the held-out files alone.

A prepared component is one array of bytes: its documents, each after a NUL byte.
"""

from __future__ import annotations

import ast
import functools
import glob
import hashlib
import itertools
import json
import math
import os
import platform
import random
import re
import shutil
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray

from carbs.launchers.lm.answers import START, save_questions
from carbs.launchers.lm.continuations import Asker, ask_lines, ask_sentences, ask_values
from carbs.launchers.lm.exercises import write_programs

BUILTIN = "builtin"
VERSION = 1  # of the text and the questions made here: raise it when they change
HELD_OUT_SHARE = 0.1
N_PROGRAMS = 60_000
N_QUESTIONS = 200
GOLDEN_RATIO = (1 + math.sqrt(5)) / 2


@dataclass(frozen=True)
class Corpus:
    """Prepared data, on disk.

    Attributes:
        folder: where it lies.
        components: names of the components that can be mixed.
        question_sets: held-out questions by the name of the set, as JSON Lines files.
    """

    folder: Path
    components: tuple[str, ...]
    question_sets: Mapping[str, Path]

    def text(self, component: str) -> NDArray[np.uint8]:
        """The training bytes of a component, one-dimensional, read from disk as they are used."""
        path = self.folder / f"{component}.npy"
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


class Split(NamedTuple):
    """Documents on the two sides of the split."""

    train: list[str]
    held_out: list[str]


def prepare(components: Mapping[str, str], folder: Path) -> Corpus:
    """Builds the components' text and questions once; later calls and other jobs find them there.

    Args:
        components: for each component ``"builtin"`` (``code``, ``prose`` and ``exercises`` are), or
            a folder or glob of UTF-8 text files.
        folder: may be shared by jobs that run at the same time.

    Raises:
        ValueError: a component is unknown, has fewer than two files or is not text. The message
            names it.
    """
    if not components:
        raise ValueError(f"no data: name a component, such as {next(iter(BUILTIN_SETS))!r}")
    sources = {name: _files(name, where) for name, where in sorted(components.items())}
    sets = _question_sets(sources)
    ready = folder / f"corpus-{_fingerprint(sources)}"
    if not ready.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "corpus.lock"):
            if not ready.exists():
                unfinished = ready.with_suffix(".part")
                shutil.rmtree(unfinished, ignore_errors=True)  # of a job that was killed
                unfinished.mkdir()
                _build(sources, sets, unfinished)
                unfinished.rename(ready)
    paths = {set_name: ready / f"{set_name}.jsonl" for set_name, _ in sets.values()}
    return Corpus(ready, tuple(sources), paths)


class DataMix:
    """Batches whose sequences come from the components in proportion to their weights.

    Args:
        corpus: what :func:`prepare` returned.
        weights: for each component its share of the sequences; a component left out has none.
        seq_len: bytes that the model reads in a sequence.
        seed: with a step's number, decides the batch.

    Raises:
        ValueError: a weight is negative or for an unknown component, the weights do not sum to
            one, or a component is shorter than one sequence.
    """

    def __init__(
        self, corpus: Corpus, weights: Mapping[str, float], seq_len: int, seed: int
    ) -> None:
        for name, weight in weights.items():
            if name not in corpus.components:
                known = ", ".join(corpus.components)
                raise ValueError(f"mix: unknown component {name!r}; the data has {known}")
            if not weight >= 0:
                raise ValueError(f"mix: the weight of {name!r} is {weight}, and must be 0 or more")
        total = sum(weights.values())
        if not abs(total - 1) <= 1e-6:
            raise ValueError(f"mix: the weights of {sorted(weights)} sum to {total}, not to 1")
        self.seq_len = seq_len
        self.seed = seed
        names = sorted(weights)  # a mix is the same in whatever order it is written
        self._upper_edges = np.cumsum([weights[name] / total for name in names])
        self._texts = [corpus.text(name) for name in names]
        for name, text in zip(names, self._texts, strict=True):
            if len(text) <= seq_len:
                raise ValueError(
                    f"component {name!r} has {len(text)} bytes of training text, too few for a "
                    f"sequence of {seq_len}: give it more files, or lower seq_len"
                )

    def batch(self, step: int, batch_size: int) -> torch.Tensor:
        """The batch of a step, ``batch_size x (seq_len + 1)`` bytes as int64.

        It depends on the seed and the step alone, so a run can resume at any step.
        """
        rng = np.random.default_rng([self.seed, step])
        batch = np.empty((batch_size, self.seq_len + 1), dtype=np.int64)
        for row, source in zip(batch, self._sources(step, batch_size), strict=True):
            text = self._texts[source]
            start = rng.integers(len(text) - self.seq_len)
            row[:] = text[start : start + self.seq_len + 1]
        return torch.from_numpy(batch)

    def _sources(self, step: int, batch_size: int) -> NDArray[np.intp]:
        """Which component each sequence is from.

        Multiples of the golden ratio, modulo one, fill the unit interval evenly from the first on.
        Independent draws would give a short run another mix than it asked for.
        """
        places = np.arange(step * batch_size, (step + 1) * batch_size)
        first = np.random.default_rng(self.seed).random()
        points = (first + GOLDEN_RATIO * places) % 1
        # Rounding may leave the last edge below one: what is above it counts to the last component
        # that has a share.
        points = np.minimum(points, np.nextafter(self._upper_edges[-1], 0))
        sources: NDArray[np.intp] = np.searchsorted(self._upper_edges, points, side="right")
        return sources


def read_split(component: str, where: str = BUILTIN) -> Split:
    """A component's documents, as :func:`prepare` would split them."""
    return _read(component, _files(component, where))


# What a component's documents are read from: its files, or nothing if they are made here.
Files = dict[str, Path] | None


def _files(component: str, where: str) -> Files:
    """A component's files by the relative name that decides their side of the split."""
    if where == BUILTIN:
        if component not in BUILTIN_SETS:
            known = ", ".join(BUILTIN_SETS)
            raise ValueError(
                f"unknown component {component!r}: {known} are built in; for your own data name a "
                "folder or glob of text files"
            )
        return None
    if Path(where).is_dir():
        root = Path(where)
        paths = [path for path in root.rglob("*") if path.is_file()]
    else:
        # Not Path.glob, which takes no absolute pattern.
        found = glob.glob(where, recursive=True)  # noqa: PTH207
        paths = [path for path in map(Path, found) if path.is_file()]
        root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    if len(paths) < 2:
        raise ValueError(
            f"component {component!r}: {where} has {len(paths)} files, and the split into training "
            "and held-out text is by file: give a folder or glob with two or more text files"
        )
    return {path.relative_to(root).as_posix(): path for path in sorted(paths)}


def _question_sets(sources: Mapping[str, Files]) -> dict[str, tuple[str, Asker]]:
    """For each component, the name of the question set that it gives, and how it is made."""
    sets = {}
    for component, files in sources.items():
        if not re.fullmatch(r"[\w-]+", component):
            raise ValueError(f"component {component!r}: use letters, digits, _ and - in its name")
        sets[component] = BUILTIN_SETS[component] if files is None else (component, ask_lines)
    names = [set_name for set_name, _ in sets.values()]
    for component, (set_name, _) in sets.items():
        if names.count(set_name) > 1 and component == set_name:
            raise ValueError(
                f"component {component!r}: a built-in component gives questions of that name; "
                "choose another"
            )
    return sets


def _fingerprint(sources: Mapping[str, Files]) -> str:
    """Changes when a file does, and when the library or this code makes other text."""
    parts: list[object] = [VERSION, platform.python_version()]
    for component, files in sources.items():
        parts.append(component)
        for name, path in (files or {}).items():
            stat = path.stat()
            parts.append([name, str(path.resolve()), stat.st_size, stat.st_mtime_ns])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _build(
    sources: Mapping[str, Files], sets: Mapping[str, tuple[str, Asker]], folder: Path
) -> None:
    splits = {component: _read(component, files) for component, files in sources.items()}
    trained_on = b"".join(_joined(split.train) for split in splits.values())
    for component, split in splits.items():
        text = np.frombuffer(_joined(split.train), dtype=np.uint8)
        np.save(folder / f"{component}.npy", text)
        set_name, ask = sets[component]
        # A passage may occur on both sides of the split, as licences and copied functions do.
        unseen = (
            question
            for question in ask(split.held_out, random.Random(component))
            if (question.prompt + question.choices[question.answer]).encode() not in trained_on
        )
        questions = list(itertools.islice(unseen, N_QUESTIONS))
        save_questions(folder / f"{set_name}.jsonl", questions)


def _joined(texts: Iterable[str]) -> bytes:
    return "".join(START + text for text in texts).encode()


def _read(component: str, files: Files) -> Split:
    if files is not None:
        return _split((name, _text(component, path)) for name, path in files.items())
    if component == "exercises":
        return _split((program, program) for program in write_programs(N_PROGRAMS, seed=0))
    if component == "code":
        return _split((name, code) for name, code, _ in _library())
    docstrings = ((name, text) for name, _, texts in _library() for text in texts)
    return _split(itertools.chain(docstrings, topics.topics.items()))


def _split(named_texts: Iterable[tuple[str, str]]) -> Split:
    """About a tenth is held out, and texts of one name are on the same side.

    A name's side is the same on every machine, whatever other names there are; but where all would
    be on one side, the other gets the first in the order of the alphabet.
    """
    texts: dict[str, list[str]] = {}
    for name, text in named_texts:
        texts.setdefault(name, []).append(text)
    held_out = {name for name in texts if _is_held_out(name)}
    if not held_out or len(held_out) == len(texts):
        held_out ^= {min(texts)}
    sides: dict[bool, dict[str, None]] = {True: {}, False: {}}
    for name, of_name in texts.items():
        sides[name in held_out].update(dict.fromkeys(of_name))
    # The same docstring, or a copy of the same file, may have names on both sides.
    return Split(
        train=list(sides[False]),
        held_out=[text for text in sides[True] if text not in sides[False]],
    )


def _is_held_out(name: str) -> bool:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT_SHARE * 2**64


def _text(component: str, path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"component {component!r}: {path} is not UTF-8 text") from error
    if START in text:
        raise ValueError(f"component {component!r}: {path} is not text, it holds NUL bytes")
    return text


@functools.cache
def _library() -> list[tuple[str, str, list[str]]]:
    """The standard library: each file's name, its code and its docstrings."""
    library = Path(sysconfig.get_path("stdlib"))
    names = (path.relative_to(library).as_posix() for path in library.rglob("*.py"))
    return [
        (name, *_separate(library / name))
        for name in sorted(names)
        if not _NOT_LIBRARY.search(name)
    ]


# Tests and tables, and what is no library or not installed everywhere.
_NOT_LIBRARY = re.compile(
    r"(^|/)(site-packages|dist-packages|tests?|idlelib|lib2to3|encodings|pydoc_data|distutils|"
    r"config-[^/]*|__phello__)/|(^|/)_sysconfigdata"
)


def _separate(path: Path) -> tuple[str, list[str]]:
    """A Python file's source without its docstrings, and the docstrings."""
    with tokenize.open(path) as file:
        source = file.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(source)
    # Not splitlines, which also splits at form feeds, as the parser does not.
    lines = source.split("\n")
    docstrings: list[str] = []
    removed: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            place = node.body[0] if node.body else None
            if docstring and place and not lines[place.lineno - 1][: place.col_offset].strip():
                docstrings.append(docstring + "\n")
                removed.update(range(place.lineno - 1, place.end_lineno or place.lineno))
    kept = (line for i, line in enumerate(lines) if i not in removed)
    return "\n".join(kept), docstrings


# The question set that each built-in component's held-out text gives, and how.
BUILTIN_SETS: dict[str, tuple[str, Asker]] = {
    "code": ("lines", ask_lines),
    "prose": ("sentences", ask_sentences),
    "exercises": ("values", ask_values),
}
