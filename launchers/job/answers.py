"""What a run answered, question by question: small files in its job's folder.

    answers/NAME.npz            of a set of questions that counts
    sealed/NAME.npz             of a sealed one: nothing of it is reported
    questions/VERSION.jsonl     in the folder that jobs share: the questions, once for all runs

The study holds none of it. Sets are compared by their version, a hash of their questions.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

OPEN, SEALED = "answers", "sealed"
_QUESTIONS = "questions"


@dataclass(frozen=True)
class Answers:
    """A run's answers to a set of n questions with m choices in all.

    Attributes:
        version: of the questions.
        nll: negative log-likelihood of each choice after its prompt, ``(m,)`` in nats; the choices
            stand question after question.
        n_bytes: of each choice, ``(m,)``.
        n_choices: of each question, ``(n,)``.
        right: which choice of each question is right, counted from 0, ``(n,)``.
    """

    version: str
    nll: NDArray[np.float32]
    n_bytes: NDArray[np.int32]
    n_choices: NDArray[np.int32]
    right: NDArray[np.int32]

    @property
    def right_nll(self) -> NDArray[np.float64]:
        """Of each question's right choice, ``(n,)`` in nats per byte: their mean is the score."""
        starts = np.cumsum(self.n_choices) - self.n_choices
        return np.asarray(self._per_byte[starts + self.right])

    @property
    def chosen(self) -> NDArray[np.int64]:
        """The choice of each question with the lowest nll per byte, ``(n,)``, counted from 0."""
        parts = np.split(self._per_byte, np.cumsum(self.n_choices)[:-1])
        return np.array([part.argmin() for part in parts])

    @property
    def _per_byte(self) -> NDArray[np.float64]:
        return self.nll.astype(float) / self.n_bytes


def save_answers(
    folder: Path,
    shared: Path,
    name: str,
    questions: Sequence[Mapping[str, Any]],
    nll: Sequence[Sequence[float] | NDArray[np.float64]],
    *,
    is_sealed: bool = False,
) -> str:
    """Write down a run's answers to a set, and the questions where no run has yet.

    Args:
        folder: of the job.
        shared: the folder that the sweep's jobs share.
        name: of the set.
        questions: each with ``prompt``, ``choices`` and ``answer``, from 0.
        nll: of each question, each choice's negative log-likelihood in nats.
        is_sealed: whether it is to stay unseen until ``carbs unseal``.

    Returns:
        The version of the questions.

    Raises:
        ValueError: the name is none for a file.
    """
    version = version_of(questions)
    text = "".join(json.dumps(dict(question)) + "\n" for question in questions)
    kept = shared / _QUESTIONS / f"{version}.jsonl"
    if not kept.exists():
        _write(kept, text.encode())
    place = _file(folder, name, is_sealed)
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = place.with_suffix(f".{uuid.uuid4().hex}.tmp")
    with draft.open("wb") as file:
        np.savez_compressed(
            file,
            version=np.array(version),
            nll=np.concatenate([np.asarray(one, dtype=np.float32) for one in nll]),
            n_bytes=np.array(
                [len(choice.encode()) for q in questions for choice in q["choices"]], np.int32
            ),
            n_choices=np.array([len(q["choices"]) for q in questions], np.int32),
            right=np.array([q["answer"] for q in questions], np.int32),
        )
    draft.replace(place)
    return version


def answered(folder: Path, *, is_sealed: bool = False) -> list[str]:
    """Names of the sets that a job has answered."""
    return sorted(path.stem for path in (folder / _kind(is_sealed)).glob("*.npz"))


def read_answers(folder: Path, name: str, *, is_sealed: bool = False) -> Answers | None:
    """A run's answers to a set; None where it has none, or they cannot be read."""
    try:
        with np.load(_file(folder, name, is_sealed), allow_pickle=False) as found:
            return Answers(
                str(found["version"]),
                found["nll"],
                found["n_bytes"],
                found["n_choices"],
                found["right"],
            )
    except (OSError, ValueError, KeyError, EOFError):
        return None


def read_questions(shared: Path, version: str) -> list[dict[str, Any]] | None:
    """The questions of a version; None where they are gone."""
    try:
        lines = (shared / _QUESTIONS / f"{version}.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in lines.splitlines()]
    except (OSError, ValueError):
        return None


def version_of(questions: Sequence[Mapping[str, Any]]) -> str:
    """The same for the same questions in the same order."""
    text = json.dumps([dict(question) for question in questions], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_name(name: str) -> None:
    """Whether a set may be called so.

    Raises:
        ValueError: it is no name for a file.
    """
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise ValueError(f"question set {name!r}: use letters, digits, _, - and . in its name")


def _kind(is_sealed: bool) -> str:
    return SEALED if is_sealed else OPEN


def _file(folder: Path, name: str, is_sealed: bool) -> Path:
    check_name(name)
    return folder / _kind(is_sealed) / f"{name}.npz"


def _write(path: Path, content: bytes) -> None:
    """In one step, also where several jobs write the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{uuid.uuid4().hex}.tmp")
    draft.write_bytes(content)
    draft.replace(path)
