"""All components prepared: their shards, and questions made of what they hold out.

Every component is split by document before anything else is done with it: a hash of the document
decides on which side it is, whatever else there is. Questions are made of the held-out documents,
and those whose prompt and answer occur in any document that is trained on are dropped.

Preparing leaves in the shared folder

    shards/          the tokens, each shard by what was read and how: see ``shards``
    components/      which shards a component has, by its files' names, sizes and dates
    corpus-.../      the question sets of these components together, and their contamination
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from carbs.launchers.lm.answers import save_questions
from carbs.launchers.lm.continuations import Asker, ask_lines, ask_sentences, ask_values
from carbs.launchers.lm.data.contamination import occurring
from carbs.launchers.lm.data.shards import (
    PLACES,
    VERSION as SHARDS_VERSION,
    Shard,
    Side,
    make_shards,
    read_shard,
)
from carbs.launchers.lm.data.sources import BUILTIN, Piece, Source, fingerprint, pieces, sources
from carbs.launchers.lm.data.tokenizer import BYTES, Tokenizer, load_tokenizer

VERSION = 2  # of the questions made here: raise it when they change
N_QUESTIONS = 200
_N_CANDIDATES = 4 * N_QUESTIONS
_ASK_CHARACTERS = 16_000_000  # of held-out text, from all shards alike


class _Made(BaseModel):
    """What is written down of a component: the names of its shards, and its split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: list[str]
    held_out_below: int


@dataclass(frozen=True)
class Component:
    """A component, tokenized.

    Attributes:
        name: in the mix.
        pieces: how it is read.
        shards: one for each of these.
        held_out_below: documents whose place is below it are held out.
    """

    name: str
    pieces: tuple[Piece, ...]
    shards: tuple[Shard, ...]
    held_out_below: int

    @cached_property
    def version(self) -> str:
        """A hash of the text."""
        versions = [shard.version for shard in self.shards]
        return hashlib.sha256(json.dumps(versions).encode()).hexdigest()[:16]

    def side(self, name: str) -> Side:
        """Of ``train`` or ``held_out``, how much there is."""
        return sum((getattr(shard, name) for shard in self.shards), start=Side())

    def tokens(self, side: str = "train") -> Tokens:
        """Of ``train`` or ``held_out``."""
        return Tokens([shard.tokens(side) for shard in self.shards])

    def facts(self) -> dict[str, Any]:
        """For the metrics."""
        train = self.side("train")
        return {
            "version": self.version,
            "unique_tokens": train.tokens,
            "documents": train.documents,
            "held_out_documents": self.side("held_out").documents,
            "bytes_per_token": train.bytes / train.tokens,
        }


class Tokens:
    """Several arrays of tokens as one, read from disk as they are used."""

    def __init__(self, parts: Sequence[NDArray[Any]]) -> None:
        self._parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def read(self, start: int, n: int) -> NDArray[Any]:
        """``n`` tokens, as they follow each other; after the last comes the first again."""
        found = []
        i = int(np.searchsorted(self._ends, start, side="right"))
        while n > 0:
            at = start - (int(self._ends[i]) - len(self._parts[i]))
            found.append(self._parts[i][at : at + n])
            n -= len(found[-1])
            i = (i + 1) % len(self._parts)
            start = int(self._ends[i]) - len(self._parts[i])
        return found[0] if len(found) == 1 else np.concatenate(found)


@dataclass(frozen=True)
class Corpus:
    """Prepared data, on disk.

    Attributes:
        folder: of the questions; its name changes when the data does.
        components: what can be mixed, by name.
        question_sets: held-out questions by the name of the set, as JSON Lines files; only of
            components whose text gives any.
        tokenizer: of all components.
    """

    folder: Path
    components: Mapping[str, Component]
    question_sets: Mapping[str, Path]
    tokenizer: Tokenizer


def prepare(
    data: Mapping[str, str | Source],
    folder: Path,
    tokenizer: str = BYTES,
    n_processes: int | None = None,
) -> Corpus:
    """Tokenizes the components and makes the questions once; later calls and jobs find them there.

    Args:
        data: for each component ``"builtin"`` (``code``, ``prose`` and ``exercises`` are), or a
            folder or glob; or a :class:`Source`, which says more.
        folder: may be shared by jobs that run at the same time.
        tokenizer: ``"bytes"``, or a file of the ``tokenizers`` library.
        n_processes: as many as the processors that this process may use by default.

    Raises:
        ValueError: a component is unknown, cannot be read, or has fewer than two documents. The
            message names it.
        ModuleNotFoundError: a library that a format needs is not installed.
    """
    described = sources(data)
    sets = _question_sets(described)
    loaded = load_tokenizer(tokenizer)
    components = {
        name: _component(name, source, folder, tokenizer, n_processes)
        for name, source in described.items()
    }
    names = {name: [shard.folder.name for shard in c.shards] for name, c in components.items()}
    set_names = {name: set_name for name, (set_name, _) in sets.items()}
    parts = json.dumps([VERSION, names, set_names])
    ready = folder / f"corpus-{hashlib.sha256(parts.encode()).hexdigest()[:16]}"
    if not ready.exists():
        with FileLock(folder / "corpus.lock"):
            if not ready.exists():
                unfinished = ready.with_suffix(".part")
                shutil.rmtree(unfinished, ignore_errors=True)  # of a job that was killed
                unfinished.mkdir()
                _make_questions(components, sets, unfinished, n_processes)
                unfinished.rename(ready)
    paths = {set_name: ready / f"{set_name}.jsonl" for set_name, _ in sets.values()}
    made = {set_name: path for set_name, path in paths.items() if path.exists()}
    return Corpus(ready, components, made, loaded)


def _component(
    name: str, source: Source, folder: Path, tokenizer: str, n_processes: int | None
) -> Component:
    read = tuple(pieces(name, source))
    shards_folder = folder / "shards"
    quick = [SHARDS_VERSION, fingerprint(name, source), load_tokenizer(tokenizer).version]
    digest = hashlib.sha256(json.dumps(quick).encode()).hexdigest()[:32]
    noted = folder / "components" / f"{digest}.json"
    if noted.exists():
        made = _Made.model_validate_json(noted.read_text())
        shards = [read_shard(shards_folder / shard) for shard in made.shards]
        return Component(name, read, tuple(shards), made.held_out_below)
    below = int(source.held_out * PLACES)
    shards = make_shards(read, tokenizer, below, shards_folder, n_processes)
    n_documents = sum(shard.train.documents + shard.held_out.documents for shard in shards)
    if n_documents < 2:
        raise ValueError(
            f"component {name!r}: {source.path} has {n_documents} documents, and the split into "
            "training and held-out text is by document: give two or more"
        )
    # So few that all are on one side: the first or the last goes to the other.
    lowest, highest = min(s.lowest for s in shards), max(s.highest for s in shards)
    if not lowest < below <= highest:
        below = lowest + 1 if below <= lowest else highest
        shards = make_shards(read, tokenizer, below, shards_folder, n_processes)
    made = _Made(shards=[shard.folder.name for shard in shards], held_out_below=below)
    noted.parent.mkdir(parents=True, exist_ok=True)
    unfinished = noted.with_name(f"{noted.name}.{random.SystemRandom().getrandbits(64):x}.part")
    unfinished.write_text(made.model_dump_json())
    unfinished.replace(noted)
    return Component(name, read, tuple(shards), below)


def _question_sets(described: Mapping[str, Source]) -> dict[str, tuple[str, Asker]]:
    """For each component, the name of the question set that it gives, and how it is made."""
    sets = {
        name: BUILTIN_SETS.get(name, (name, ask_lines))
        if source.path == BUILTIN
        else (name, ask_lines)
        for name, source in described.items()
    }
    names = [set_name for set_name, _ in sets.values()]
    for component, (set_name, _) in sets.items():
        if names.count(set_name) > 1 and component == set_name:
            raise ValueError(
                f"component {component!r}: a built-in component gives questions of that name; "
                "choose another"
            )
    return sets


def _make_questions(
    components: Mapping[str, Component],
    sets: Mapping[str, tuple[str, Asker]],
    folder: Path,
    n_processes: int | None,
) -> None:
    candidates = {
        name: list(
            itertools.islice(
                sets[name][1](_held_out_texts(component), random.Random(name)), _N_CANDIDATES
            )
        )
        for name, component in components.items()
    }
    # A passage may occur on both sides of the split, as licences and copied functions do.
    wholes = [
        (question.prompt + question.choices[question.answer]).encode()
        for name in components
        for question in candidates[name]
    ]
    seen = iter(occurring(wholes, list(components.values()), n_processes))
    for name in components:
        unseen = [question for question in candidates[name] if not next(seen)]
        if unseen:  # text of one long line, say, gives none
            save_questions(folder / f"{sets[name][0]}.jsonl", unseen[:N_QUESTIONS])


def _held_out_texts(component: Component) -> Iterator[str]:
    for shard in component.shards:
        left = _ASK_CHARACTERS // len(component.shards)
        for text in shard.held_out_texts():
            yield text
            left -= len(text)
            if left <= 0:
                break


# The question set that each built-in component's held-out text gives, and how.
BUILTIN_SETS: dict[str, tuple[str, Asker]] = {
    "code": ("lines", ask_lines),
    "prose": ("sentences", ask_sentences),
    "exercises": ("values", ask_values),
}
