"""What of the questions and of the held-out documents was trained on.

n-gram overlap     A question overlaps with the training documents where any eight words of its
                   prompt and right answer that follow each other do (all of it, where it has
                   fewer), without regard to case and to what stands between words; Brown et al.
                   2020, arXiv 2005.14165, appendix C, take 8 to 13 words.
near-duplicates    A held-out document is nearly a training document where of their runs of five
                   words at least .8 are the same (Jaccard similarity). MinHash finds the pairs
                   (Broder 1997), by the ``rensa`` library; each is then compared exactly.
                   Documents under 20 words are left out, and of many some are drawn.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from carbs.launchers.lm.data.matching import Matcher
from carbs.launchers.lm.data.parallel import for_each
from carbs.launchers.lm.data.sources import Piece, place_of
from carbs.launchers.lm.data.tokenizer import START

if TYPE_CHECKING:
    from carbs.launchers.lm.data.corpus import Component, Corpus

VERSION = 1  # of what is measured
NGRAM_WORDS = 8
SHINGLE_WORDS = 5
SIMILARITY = 0.8
MIN_WORDS = 20
MAX_COMPARED = 2_000  # held-out documents of each component
_N_PERMUTATIONS, _N_BANDS = 120, 20  # at a similarity of .8, .998 of the pairs are found
_TOGETHER = 1_000_000  # characters that are searched at once


def measure(
    corpus: Corpus, questions: Mapping[str, Sequence[str]], n_processes: int | None = None
) -> dict[str, Any]:
    """What was trained on of some questions and of the corpus' held-out documents; measured once.

    All training documents are read. The file ``contamination-*.json`` in the corpus' folder also
    says which questions, by their places in their sets, and which documents.

    Args:
        corpus: that is trained on.
        questions: by the name of a set, each question's prompt and right answer.
        n_processes: as many as the processors that this process may use by default.

    Returns:
        ``ngram_words``; ``questions``, for each set ``n``, ``overlapping``, ``share``, and how many
        overlap with each component; ``similarity``; ``near_duplicates``, for each component
        ``compared``, ``found`` and ``share``, or None where ``rensa`` is not installed.
    """
    asked = json.dumps([VERSION, questions, _can_compare()], sort_keys=True)
    name = f"contamination-{hashlib.sha256(asked.encode()).hexdigest()[:16]}.json"
    path = corpus.folder / name
    if not path.exists():
        with FileLock(corpus.folder / "contamination.lock"):
            if not path.exists():
                found = _measure(corpus, questions, n_processes)
                unfinished = path.with_suffix(".part")
                unfinished.write_text(json.dumps(found, indent=1))
                unfinished.rename(path)
    told: dict[str, Any] = json.loads(path.read_text())
    for part in (told["questions"], told["near_duplicates"] or {}):
        for counts in part.values():
            counts.pop("which")
    return told


def occurring(
    wholes: Sequence[bytes], components: Sequence[Component], n_processes: int | None = None
) -> list[bool]:
    """Of each byte string, whether it occurs in a document that is trained on."""
    scan = partial(_find, patterns=list(wholes), below=_below(components))
    found = for_each(scan, _pieces(components), "looking for questions", n_processes)
    everywhere = set().union(*found)
    return [i in everywhere for i in range(len(wholes))]


def _find(piece: Piece, patterns: Sequence[bytes], below: Mapping[str, int]) -> set[int]:
    matcher = Matcher(patterns)
    for text in _together(_trained_on(piece, below)):
        matcher.read(text.encode())
    return matcher.found


def _measure(
    corpus: Corpus, questions: Mapping[str, Sequence[str]], n_processes: int | None
) -> dict[str, Any]:
    components = list(corpus.components.values())
    # Each n-gram once, and the questions in which it stands.
    owners: dict[bytes, set[tuple[str, int]]] = defaultdict(set)
    for name, asked in questions.items():
        for i, text in enumerate(asked):
            for ngram in _ngrams(words(text)):
                owners[ngram].add((name, i))
    held_out = [
        (component.name, text)
        for component in components
        for text in (_sample(component) if _can_compare() else ())
    ]
    scan = partial(
        _scan,
        ngrams=list(owners),
        held_out=[text for _, text in held_out],
        below=_below(components),
    )
    read = _pieces(components)
    found = for_each(scan, read, "measuring contamination", n_processes)

    overlaps: dict[str, set[tuple[str, int]]] = {c.name: set() for c in components}
    ngrams = list(owners)
    for piece, (matched, _) in zip(read, found, strict=True):
        overlaps[piece.component].update(*(owners[ngrams[i]] for i in matched))
    near = sorted(set().union(*(similar for _, similar in found)))
    return {
        "ngram_words": NGRAM_WORDS,
        "questions": {
            name: _overlap(name, len(asked), overlaps) for name, asked in questions.items()
        },
        "similarity": SIMILARITY,
        "near_duplicates": {
            component.name: _duplicates(component.name, held_out, near) for component in components
        }
        if _can_compare()
        else None,
    }


def _overlap(name: str, n: int, overlaps: Mapping[str, set[tuple[str, int]]]) -> dict[str, Any]:
    by_component = {
        component: {i for of, i in found if of == name} for component, found in overlaps.items()
    }
    which = sorted(set().union(*by_component.values()))
    return {
        "n": n,
        "overlapping": len(which),
        "share": len(which) / n if n else 0.0,
        "components": {component: len(found) for component, found in by_component.items() if found},
        "which": which,
    }


def _duplicates(
    component: str, held_out: Sequence[tuple[str, str]], near: Sequence[int]
) -> dict[str, Any]:
    n = sum(name == component for name, _ in held_out)
    which = [held_out[i][1][:200] for i in near if held_out[i][0] == component]
    share = len(which) / n if n else 0.0
    return {"compared": n, "found": len(which), "share": share, "which": which}


def _scan(
    piece: Piece, ngrams: Sequence[bytes], held_out: Sequence[str], below: Mapping[str, int]
) -> tuple[set[int], set[int]]:
    """Which n-grams occur in a piece, and to which held-out documents one of its own is similar."""
    matcher = Matcher(ngrams)
    similar = _Similar(held_out)

    def read() -> Iterator[str]:
        for text in _trained_on(piece, below):
            found = words(text)
            similar.compare(found)
            yield f" {' '.join(found)} "

    for text in _together(read()):
        matcher.read(text.encode())
    return matcher.found, similar.found


class _Similar:
    """Collects which documents are similar to one that it was shown."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.found: set[int] = set()
        self._shingles = [_shingles(words(text)) for text in texts]
        if not texts:
            return
        from rensa import RMinHash, RMinHashLSH

        self._signature = partial(RMinHash, num_perm=_N_PERMUTATIONS, seed=1)
        self._near = RMinHashLSH(threshold=SIMILARITY, num_perm=_N_PERMUTATIONS, num_bands=_N_BANDS)
        for i, shingles in enumerate(self._shingles):
            self._near.insert(i, self._signed(shingles))

    def compare(self, words: Sequence[str]) -> None:
        if not self._shingles or len(words) < MIN_WORDS:
            return
        shingles = _shingles(words)
        for i in self._near.query(self._signed(shingles)):
            other = self._shingles[i]
            if len(shingles & other) >= SIMILARITY * len(shingles | other):
                self.found.add(i)

    def _signed(self, shingles: set[str]) -> Any:
        signature = self._signature()
        signature.update(list(shingles))
        return signature


def words(text: str) -> list[str]:
    """The words of a text, in small letters."""
    return _WORD.findall(text.lower())


_WORD = re.compile(r"\w+")


def _ngrams(words: Sequence[str]) -> Iterator[bytes]:
    """As they stand between two blanks in :func:`_scan`; none where there are no words."""
    if words:
        for i in range(max(1, len(words) - NGRAM_WORDS + 1)):
            yield f" {' '.join(words[i : i + NGRAM_WORDS])} ".encode()


def _shingles(words: Sequence[str]) -> set[str]:
    last = max(1, len(words) - SHINGLE_WORDS + 1)
    return {" ".join(words[i : i + SHINGLE_WORDS]) for i in range(last)}


def _sample(component: Component) -> list[str]:
    """Held-out documents that are long enough, from all shards alike."""
    found = []
    for shard in component.shards:
        left = -(-MAX_COMPARED // len(component.shards))
        for text in shard.held_out_texts():
            if left and len(words(text)) >= MIN_WORDS:
                found.append(text)
                left -= 1
    return found


def _trained_on(piece: Piece, below: Mapping[str, int]) -> Iterator[str]:
    for text, key in piece.documents():
        if place_of(key) >= below[piece.component]:
            yield text


def _together(texts: Iterable[str]) -> Iterator[str]:
    """Small texts as one, and between them what stands in none."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _TOGETHER:
            yield START.join(batch)
            batch, size = [], 0
    if batch:
        yield START.join(batch)


def _pieces(components: Iterable[Component]) -> list[Piece]:
    return [piece for component in components for piece in component.pieces]


def _below(components: Iterable[Component]) -> dict[str, int]:
    return {component.name: component.held_out_below for component in components}


def _can_compare() -> bool:
    return find_spec("rensa") is not None
