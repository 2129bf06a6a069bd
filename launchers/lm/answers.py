"""Held-out answer perplexity: how well a model knows the answers to questions.

A question is a prompt and some choices, one of which is right. The model reads the prompt's tokens,
then each choice's; where the one ends and the other begins is the question's to say, and no text is
stripped. For a choice a of |a| bytes,

    nll(a) = -log p(a | prompt) / |a|        in nats per byte,

and the objective is the mean of nll(answer) over the questions, the log of the answer perplexity.
As it is per byte, models of different tokenizers can be compared.

Prompt and choice are encoded as one text, as they were in training. A token that reaches over the
boundary between them counts to the choices, to all of them alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from carbs.launchers.job.distributed import ALONE, World, answered
from carbs.launchers.lm.model import Transformer
from carbs.launchers.lm.shapes import SHAPES, from_shape, read_rows

START = "\0"  # stands before every document in training, and so before every prompt

# The tokens of each text, with none that are not of the text.
Encode = Callable[[Sequence[str]], Sequence[Sequence[int] | NDArray[Any]]]


class Question(BaseModel):
    """One question; a line of a JSON Lines file.

    Attributes:
        prompt: what the model reads first; may be empty.
        choices: none empty, no two the same. A single one is how a text goes on.
        answer: which of the choices is right, counted from 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: str
    choices: list[str] = Field(min_length=1)
    answer: int = Field(ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Question:
        if self.answer >= len(self.choices):
            raise ValueError(f"answer {self.answer} is none of the {len(self.choices)} choices")
        if "" in self.choices:
            raise ValueError("a choice is empty")
        if len(set(self.choices)) < len(self.choices):
            raise ValueError("two choices are the same")
        return self


class Score(NamedTuple):
    """A model's answer to one question.

    Attributes:
        log_likelihoods: of each choice's text after the prompt, in nats.
        is_greedy: whether the right answer is the model's own continuation, token by token.
        is_cut: whether the prompt was too long, and lost its beginning.
    """

    log_likelihoods: NDArray[np.float64]
    is_greedy: bool
    is_cut: bool


@dataclass(frozen=True)
class Evaluation:
    """A model's answers to one set of questions.

    Attributes:
        nll_per_byte: mean over the questions of the right answer's negative log-likelihood divided
            by its bytes, in nats.
        nll_per_answer: mean over the questions of that of the whole answer, in nats.
        accuracy: share of the questions whose right choice has the lowest nll per byte; of a
            question with a single choice, whether that is what the model itself would say.
        choice_likelihood: mean probability of the right choice, among the choices in proportion
            to the likelihoods of their texts; None where no question has two.
        n_questions: how many were asked.
        n_cut: how many of their prompts were too long for the model and lost their beginning.
    """

    nll_per_byte: float
    nll_per_answer: float
    accuracy: float
    choice_likelihood: float | None
    n_questions: int
    n_cut: int = 0

    @property
    def perplexity(self) -> float:
        """The answer perplexity a byte: exp of ``nll_per_byte``."""
        return math.exp(self.nll_per_byte)


def load_questions(path: Path) -> list[Question]:
    """The questions of a JSON Lines (also ``.gz``) or Parquet file.

    A row has the keys ``prompt``, ``choices`` and ``answer``, or those of a published set that is
    recognised by them: see :mod:`carbs.launchers.lm.shapes`.

    Raises:
        ValueError: a line is no question, or there is none. The message names the line.
    """
    questions = []
    for number, row in read_rows(path):
        try:
            questions += [Question.model_validate(found) for found in _plain(row)]
        except ValidationError as error:
            problems = "; ".join(
                ": ".join([*map(str, problem["loc"]), problem["msg"]]) for problem in error.errors()
            )
            raise ValueError(f"{path}, line {number}: {problems}{_known(row)}") from error
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    if not questions:
        raise ValueError(
            f"{path} holds no question: it needs one JSON object a line. If it was made here of "
            f"held-out text, give more text, or a file for {path.stem!r} in the setting 'questions'"
        )
    return questions


def _plain(row: Any) -> list[Any]:
    """A row as it is, or as a published set's shape reads it."""
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, and it is {row!r}")
    found = from_shape(row)
    return [row] if found is None else found


def _known(row: dict[str, Any]) -> str:
    """What else a row may be, where it is nothing that is known."""
    if {"prompt", "choices", "answer"} & set(row):
        return ""
    known = "; ".join(f"{shape.name}: {', '.join(shape.keys)}" for shape in SHAPES)
    return f". Its keys are those of no set that is known ({known})"


def save_questions(path: Path, questions: Sequence[Question]) -> None:
    """Writes what :func:`load_questions` reads."""
    lines = [json.dumps(question.model_dump()) + "\n" for question in questions]
    path.write_text("".join(lines), encoding="utf-8")


def encode_bytes(texts: Sequence[str]) -> Sequence[Sequence[int]]:
    """The bytes of each text as its tokens."""
    return [text.encode() for text in texts]


def evaluate(
    model: Transformer,
    questions: Sequence[Question],
    tokens_per_batch: int = 2048,
    *,
    encode: Encode = encode_bytes,
    start: int = ord(START),
    max_tokens: int | None = None,
    world: World = ALONE,
) -> Evaluation:
    """Asks the model every question: :func:`score`, then :func:`summarise`."""
    how: dict[str, Any] = {"encode": encode, "start": start, "max_tokens": max_tokens}
    return summarise(questions, score(model, questions, tokens_per_batch, world=world, **how))


def summarise(questions: Sequence[Question], scores: Sequence[Score]) -> Evaluation:
    """Of the answers to one or more questions."""
    per_byte, per_answer, right, likelihoods = [], [], [], []
    for question, scored in zip(questions, scores, strict=True):
        nll = -scored.log_likelihoods
        nll_per_byte = nll / choice_bytes(question)
        per_byte.append(nll_per_byte[question.answer])
        per_answer.append(nll[question.answer])
        if len(question.choices) == 1:
            right.append(scored.is_greedy)
            continue
        right.append(bool(nll_per_byte.argmin() == question.answer))
        shares = torch.from_numpy(scored.log_likelihoods).softmax(0)
        likelihoods.append(float(shares[question.answer]))
    return Evaluation(
        nll_per_byte=float(np.mean(per_byte)),
        nll_per_answer=float(np.mean(per_answer)),
        accuracy=float(np.mean(right)),
        choice_likelihood=float(np.mean(likelihoods)) if likelihoods else None,
        n_questions=len(questions),
        n_cut=sum(scored.is_cut for scored in scores),
    )


def choice_bytes(question: Question) -> NDArray[np.int64]:
    """Bytes of each choice."""
    return np.array([len(choice.encode()) for choice in question.choices])


@torch.inference_mode()
def score(
    model: Transformer,
    questions: Sequence[Question],
    tokens_per_batch: int = 2048,
    *,
    encode: Encode = encode_bytes,
    start: int = ord(START),
    max_tokens: int | None = None,
    world: World = ALONE,
) -> list[Score]:
    """What the model thinks of every choice of every question, in their order.

    A question is one row of a batch: the prompt once, then its choices one after the other, each
    of which sees the prompt and itself alone, at the places where it would follow the prompt.

    Args:
        model: scores on the device where its weights are.
        questions: one or more.
        tokens_per_batch: bounds the memory; the result does not depend on it beyond rounding.
        encode: from texts to the tokens of each, without any that is not of the text.
        start: the token that stands before every document in training.
        max_tokens: that the model is to see of prompt and choice; of longer ones the prompt's
            beginning is left out. Without it, all.
        world: tasks that each have the model, and share the batches among them.

    Raises:
        ValueError: there is no question.
        TaskLostError: another task has failed.
    """
    if not questions:
        raise ValueError("cannot evaluate a model on no questions")
    device = model.embedding.device
    rows = [
        _pack(one, question.answer)
        for one, question in zip(
            encoded(questions, encode, start, max_tokens), questions, strict=True
        )
    ]
    # The likelihood of each choice, then whether the answer is greedy: zero where others score it.
    found = [torch.zeros(len(row.targets) + 1, dtype=torch.float64) for row in rows]
    for batch, counts in world.divided(list(_batches(rows, tokens_per_batch))):
        length = max(len(rows[i].tokens) for i in batch)
        tokens = torch.zeros(len(batch), length, dtype=torch.long)
        positions = torch.zeros(len(batch), length, dtype=torch.long)
        segments = torch.full((len(batch), length), -1)
        for place, i in enumerate(batch):
            size = len(rows[i].tokens)
            tokens[place, :size] = torch.tensor(rows[i].tokens)
            positions[place, :size] = torch.tensor(rows[i].positions)
            segments[place, :size] = torch.tensor(rows[i].segments)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        own = segments[:, :, None] == segments[:, None, :]
        mask = causal & (own | (segments[:, None, :] == PROMPT))
        with answered():
            logits = model(tokens.to(device), positions.to(device), mask.to(device))
        for place, i in enumerate(batch if counts else []):
            found[i] = _score(logits[place], rows[i])
    world.add(found)
    return [
        Score(of_row[:-1].numpy(), bool(of_row[-1]), row.is_cut)
        for of_row, row in zip(found, rows, strict=True)
    ]


class Encoded(NamedTuple):
    """A question in tokens: what is read before any choice, and each choice's own."""

    context: list[int]
    targets: list[list[int]]
    is_cut: bool


def encoded(
    questions: Sequence[Question], encode: Encode, start: int, max_tokens: int | None
) -> list[Encoded]:
    """The choices' tokens are those of the whole text after what all share with the prompt's."""
    texts = [
        text
        for question in questions
        for text in (question.prompt, *(question.prompt + choice for choice in question.choices))
    ]
    tokens = (list(map(int, of_text)) for of_text in encode(texts))
    found = []
    for question in questions:
        prompt, *wholes = (next(tokens) for _ in range(1 + len(question.choices)))
        shared, most = 0, min(len(prompt), *(len(whole) - 1 for whole in wholes))
        while shared < most and all(whole[shared] == prompt[shared] for whole in wholes):
            shared += 1
        targets = [whole[shared:] for whole in wholes]
        keep = shared
        if max_tokens is not None:  # the start, and all but the last token of the longest choice
            keep = min(shared, max(0, max_tokens - max(map(len, targets))))
        context = [start, *prompt[shared - keep : shared]]
        found.append(Encoded(context, targets, is_cut=keep < shared))
    return found


PROMPT = 0


@dataclass(frozen=True)
class _Row:
    """A question as one row: ``sources[c]`` are the places whose logits predict ``targets[c]``."""

    tokens: list[int]
    positions: list[int]
    segments: list[int]
    sources: list[list[int]]
    targets: list[list[int]]
    answer: int
    is_cut: bool


def _pack(question: Encoded, answer: int) -> _Row:
    tokens = list(question.context)
    end = len(tokens)
    positions, segments = list(range(end)), [PROMPT] * end
    sources: list[list[int]] = []
    for number, target in enumerate(question.targets, start=1):
        # The prompt's last token predicts the first token of every choice; a choice's own last
        # token predicts nothing, and is left out.
        sources.append([end - 1, *range(len(tokens), len(tokens) + len(target) - 1)])
        positions += range(end, end + len(target) - 1)
        segments += [number] * (len(target) - 1)
        tokens += target[:-1]
    return _Row(tokens, positions, segments, sources, question.targets, answer, question.is_cut)


def _score(logits: Tensor, row: _Row) -> Tensor:
    """From the ``T x V`` logits of a row: each choice's log-likelihood, and 1 for a greedy answer.

    Only the logits that predict a choice are looked at.
    """
    sizes = [len(target) for target in row.targets]
    places = torch.tensor([place for source in row.sources for place in source])
    targets = torch.tensor([token for target in row.targets for token in target])
    predicted = logits[places.to(logits.device)].float()
    of_targets = predicted.log_softmax(-1).gather(-1, targets.to(logits.device)[:, None])[:, 0]
    hits = torch.split(predicted.argmax(-1).cpu() == targets, sizes)[row.answer]
    log_likelihoods = [part.sum() for part in torch.split(of_targets.double().cpu(), sizes)]
    return torch.stack([*log_likelihoods, hits.all().double()])


def _batches(rows: list[_Row], tokens_per_batch: int) -> Iterator[list[int]]:
    """Places of rows of similar length together, since the shorter ones are padded."""
    batch: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i].tokens)):
        if batch and (len(batch) + 1) * len(rows[i].tokens) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(i)
    yield batch
