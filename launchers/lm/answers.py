"""Held-out answer perplexity: how well a model knows the answers to multiple-choice questions.

A question is a prompt and some choices, one of which is right. The model reads the prompt's bytes,
then each choice's bytes; where the one ends and the other begins is the question's to say, and no
text is stripped. For a choice a of |a| bytes,

    nll(a) = -log p(a | prompt) / |a|        in nats per byte,

and the objective is the mean of nll(answer) over the questions, the log of the answer perplexity.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from carbs.launchers.lm.model import Transformer

START = "\0"  # stands before every document in training, and so before every prompt


class Question(BaseModel):
    """One multiple-choice question; a line of a JSON Lines file.

    Attributes:
        prompt: what the model reads first; may be empty.
        choices: two or more, none empty, no two the same.
        answer: which of the choices is right, counted from 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: str
    choices: list[str] = Field(min_length=2)
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


@dataclass(frozen=True)
class Evaluation:
    """A model's answers to one set of questions.

    Attributes:
        nll_per_byte: mean over the questions of the right answer's negative log-likelihood divided
            by its bytes, in nats.
        accuracy: share of the questions whose right choice has the lowest nll per byte.
        choice_likelihood: mean probability of the right choice, among the choices in proportion
            to the likelihoods of their texts.
        n_questions: how many were asked.
    """

    nll_per_byte: float
    accuracy: float
    choice_likelihood: float
    n_questions: int

    @property
    def perplexity(self) -> float:
        """The answer perplexity a byte: exp of ``nll_per_byte``."""
        return math.exp(self.nll_per_byte)


def load_questions(path: Path) -> list[Question]:
    """The questions of a JSON Lines file with the keys ``prompt``, ``choices`` and ``answer``.

    Raises:
        ValueError: a line is no question, or there is none. The message names the line.
    """
    questions = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                questions.append(Question.model_validate_json(line))
            except ValidationError as error:
                problems = "; ".join(
                    ": ".join([*map(str, problem["loc"]), problem["msg"]])
                    for problem in error.errors()
                )
                raise ValueError(f"{path}, line {number}: {problems}") from error
    if not questions:
        raise ValueError(
            f"{path} holds no question: it needs one JSON object a line. If it was made here of "
            f"held-out text, give more text, or a file for {path.stem!r} in the setting 'questions'"
        )
    return questions


def save_questions(path: Path, questions: Sequence[Question]) -> None:
    """Writes what :func:`load_questions` reads."""
    lines = [json.dumps(question.model_dump()) + "\n" for question in questions]
    path.write_text("".join(lines), encoding="utf-8")


@torch.inference_mode()
def evaluate(
    model: Transformer, questions: Sequence[Question], tokens_per_batch: int = 2048
) -> Evaluation:
    """Asks the model every question.

    A question is one row of a batch: the prompt once, then its choices one after the other, each
    of which sees the prompt and itself alone, at the places where it would follow the prompt.

    Args:
        model: scores on the device where its weights are.
        questions: one or more.
        tokens_per_batch: bounds the memory; the result does not depend on it beyond rounding.

    Raises:
        ValueError: there is no question.
    """
    if not questions:
        raise ValueError("cannot evaluate a model on no questions")
    device = model.embedding.device
    nll = right = likelihood = 0.0
    for batch in _batches([_pack(question) for question in questions], tokens_per_batch):
        length = max(len(row.tokens) for row in batch)
        tokens = torch.zeros(len(batch), length, dtype=torch.long)
        positions = torch.zeros(len(batch), length, dtype=torch.long)
        segments = torch.full((len(batch), length), -1)
        for i, row in enumerate(batch):
            tokens[i, : len(row.tokens)] = torch.tensor(row.tokens)
            positions[i, : len(row.tokens)] = torch.tensor(row.positions)
            segments[i, : len(row.tokens)] = torch.tensor(row.segments)
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        own = segments[:, :, None] == segments[:, None, :]
        mask = causal & (own | (segments[:, None, :] == PROMPT))
        logits = model(tokens.to(device), positions.to(device), mask.to(device))
        log_p = logits.float().log_softmax(-1).cpu()
        for i, row in enumerate(batch):
            scores = _choice_log_likelihoods(log_p[i], row)
            per_byte = scores / torch.tensor([len(places) for places in row.sources])
            nll -= float(per_byte[row.answer])
            right += float(per_byte.argmax() == row.answer)
            likelihood += float(scores.softmax(0)[row.answer])
    n = len(questions)
    return Evaluation(nll / n, right / n, likelihood / n, n)


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


def _pack(question: Question) -> _Row:
    tokens = list((START + question.prompt).encode())
    end = len(tokens)
    positions, segments = list(range(end)), [PROMPT] * end
    sources: list[list[int]] = []
    targets: list[list[int]] = []
    for number, choice in enumerate(question.choices, start=1):
        target = list(choice.encode())
        # The prompt's last byte predicts the first byte of every choice; a choice's own last byte
        # predicts nothing, and is left out.
        sources.append([end - 1, *range(len(tokens), len(tokens) + len(target) - 1)])
        targets.append(target)
        positions += range(end, end + len(target) - 1)
        segments += [number] * (len(target) - 1)
        tokens += target[:-1]
    return _Row(tokens, positions, segments, sources, targets, question.answer)


def _choice_log_likelihoods(log_p: Tensor, row: _Row) -> Tensor:
    """One log-likelihood a choice, in nats, from the ``T x V`` log-probabilities of a row."""
    return torch.stack(
        [
            log_p[sources, targets].double().sum()
            for sources, targets in zip(row.sources, row.targets, strict=True)
        ]
    )


def _batches(rows: list[_Row], tokens_per_batch: int) -> Iterator[list[_Row]]:
    """Rows of similar length together, since the shorter ones are padded."""
    batch: list[_Row] = []
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        if batch and (len(batch) + 1) * len(row.tokens) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(row)
    yield batch
