"""The shapes in which question sets are published, and what a model reads of them.

A row is recognised by its keys. Each choice begins with the blank that parts it from the prompt, as
tokenizers want it. A wrong choice that is written twice is asked once.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

Row = Mapping[str, Any]
# The keys ``prompt``, ``choices`` and ``answer`` (from 0).
Plain = dict[str, Any]


class Shape(NamedTuple):
    """A published shape.

    Attributes:
        name: of the set that made it common.
        keys: by which a row is known; it may have others.
        read: the questions of a row.
    """

    name: str
    keys: tuple[str, ...]
    read: Callable[[Row], list[Plain]]


def from_shape(row: Row) -> list[Plain] | None:
    """The questions of a row of a published set; None where it is of none.

    Raises:
        ValueError: a value is not what the set's shape promises, or the answer is not given.
    """
    for shape in SHAPES:
        if set(shape.keys) <= set(row):
            try:
                return shape.read(row)
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"looks like {shape.name}, but is not: {error!r}") from None
            except ValueError as error:
                raise ValueError(f"looks like {shape.name}, but {error}") from None
    return None


def shape_of(path: Path) -> str:
    """The name of a file's shape, by its first row; empty for questions as they are kept here."""
    row = next((row for _, row in read_rows(path)), None)
    keys = set(row) if isinstance(row, dict) else set()
    return next((shape.name for shape in SHAPES if set(shape.keys) <= keys), "")


def read_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """The rows of a JSON Lines (also ``.gz``) or Parquet file, each with its number from 1.

    Raises:
        ValueError: a line is no JSON, or Parquet cannot be read here.
    """
    if path.suffix == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError:
            raise ValueError(
                f"{path}: Parquet is read by pyarrow: pip install 'carbs-search[parquet]'"
            ) from None
        yield from enumerate(parquet.read_table(path).to_pylist(), start=1)
        return
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield number, json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number}: no JSON object: {error}") from None


def _hellaswag(row: Row) -> list[Plain]:
    texts = [_without_markup(text) for text in (row["ctx"], *row["endings"])]
    activity = row.get("activity_label")
    context = f"{activity}: {texts[0]}" if activity else texts[0]
    return [_question(context, texts[1:], _place(row["label"], len(texts) - 1))]


def _without_markup(text: str) -> str:
    """Without the marks that some sources of HellaSwag have left in it, ``[title]`` and others."""
    text = text.replace(" [title]", ". ").strip()
    return re.sub(r" +", " ", re.sub(r"\[.*?\]", "", text))


def _arc(row: Row) -> list[Plain]:
    question, choices = row["question"], row.get("choices")
    if isinstance(question, dict):  # as it was first published
        question, listed = question["stem"], question["choices"]
        choices = {key: [choice[key] for choice in listed] for key in ("text", "label")}
    if not isinstance(choices, dict):
        raise ValueError("'choices' has no 'text' and 'label'")
    labels = [str(label) for label in choices["label"]]
    key = str(row["answerKey"])
    if key not in labels:
        raise ValueError(f"answerKey {key!r} is none of {labels}{_UNPUBLISHED * (not key)}")
    return [_question(_asked(question), choices["text"], labels.index(key))]


def _boolq(row: Row) -> list[Plain]:
    is_true = row["answer"] if "answer" in row else _place(row["label"], 2) == 1
    if not isinstance(is_true, bool):
        raise ValueError(f"answer {is_true!r} is neither true nor false")
    question = row["question"].strip()
    question = question if question.endswith("?") else question + "?"
    return [_question(f"{row['passage']}\n{_asked(question)}", ["no", "yes"], int(is_true))]


def _race(row: Row) -> list[Plain]:
    """A passage with one question, or, as first published, with a list of them."""
    if "questions" in row:
        asked = list(zip(row["questions"], row["options"], row["answers"], strict=True))
    else:
        asked = [(row["question"], row["options"], row["answer"])]
    return [
        _question(f"{row['article']}\n{_asked(question)}", options, _place(answer, len(options)))
        for question, options, answer in asked
    ]


def _mmlu(row: Row) -> list[Plain]:
    choices = row["choices"]
    if isinstance(choices, dict):
        raise ValueError("'choices' is no list")
    return [_question(_asked(row["question"]), choices, _place(row["answer"], len(choices)))]


def _lambada(row: Row) -> list[Plain]:
    """How the last word is foretold: the only choice."""
    context, _, word = row["text"].rstrip().rpartition(" ")
    if not context:
        raise ValueError("its text has a single word")
    return [_question(context, [word], 0)]


def _piqa(row: Row) -> list[Plain]:
    choices = [row["sol1"], row["sol2"]]
    return [_question(_asked(row["goal"]), choices, _place(row["label"], 2))]


def _winogrande(row: Row) -> list[Plain]:
    """The sentence up to the gap, and as choices each option with what follows the gap."""
    before, gap, after = row["sentence"].partition("_")
    if not gap:
        raise ValueError("its sentence has no gap '_'")
    choices = [row["option1"] + after, row["option2"] + after]
    return [_question(before.rstrip(), choices, _place(row["answer"], 2, first=1))]


SHAPES = (
    Shape("HellaSwag", ("ctx", "endings", "label"), _hellaswag),
    Shape("WinoGrande", ("sentence", "option1", "option2", "answer"), _winogrande),
    Shape("PIQA", ("goal", "sol1", "sol2", "label"), _piqa),
    Shape("RACE", ("article", "questions", "options", "answers"), _race),
    Shape("RACE", ("article", "question", "options", "answer"), _race),
    Shape("BoolQ", ("passage", "question", "answer"), _boolq),
    Shape("BoolQ", ("passage", "question", "label"), _boolq),
    Shape("ARC", ("question", "answerKey"), _arc),
    Shape("MMLU", ("question", "choices", "answer"), _mmlu),
    Shape("LAMBADA", ("text",), _lambada),
)

_UNPUBLISHED = ": it is of a test split whose answers are not published"


def _asked(question: str) -> str:
    return f"Question: {question.strip()}\nAnswer:"


def _question(prompt: str, choices: list[str], answer: int) -> Plain:
    """With a blank before each choice that follows a prompt, and each choice once."""
    blank = " " if prompt else ""
    texts = [blank + choice.strip() for choice in choices]
    right = texts[answer]
    if not right.strip():
        raise ValueError("its right choice is empty")
    kept = list(dict.fromkeys(text for text in texts if text.strip()))
    return {"prompt": prompt, "choices": kept, "answer": kept.index(right)}


def _place(label: Any, n_choices: int, first: int = 0) -> int:
    """Which choice a label means: a letter, or a number that counts from ``first``."""
    text = str(label).strip()
    if isinstance(label, bool) or text in ("", "-1", "None"):
        raise ValueError(f"its answer is {label!r}{_UNPUBLISHED}")
    is_letter = len(text) == 1 and text.isalpha()
    try:
        place = ord(text.upper()) - ord("A") if is_letter else int(text) - first
    except ValueError:
        raise ValueError(f"its answer {label!r} is neither a number nor a letter") from None
    if not 0 <= place < n_choices:
        raise ValueError(f"its answer {label!r} is none of the {n_choices} choices")
    return place
