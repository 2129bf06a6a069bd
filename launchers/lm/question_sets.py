"""What a run of the reference job is asked: sets that make its objective, and sealed ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from carbs.launchers.job.answers import check_name, save_answers, version_of
from carbs.launchers.job.distributed import ALONE, World
from carbs.launchers.job.protocol import Job
from carbs.launchers.lm.answers import (
    START,
    Encode,
    Question,
    Score,
    encode_bytes,
    evaluate,
    load_questions,
    score,
    summarise,
)
from carbs.launchers.lm.model import Transformer


class QuestionSets:
    """Sets of questions, each with its weight in the objective.

    A sealed set is scored when a run ends, and its answers are written into the job's folder; they
    are no part of the output, of the curve or of the metrics.

    Args:
        files: of the open sets, by their names.
        sealed: files of the sealed ones.
        weights: of open sets in the objective, not negative; 1 for those that are not named.
        encode: from texts to the tokens of each.
        start: the token that stands before every document.
        max_tokens: that the model is to see of prompt and choice; None for all.
        world: tasks that share the scoring.

    Raises:
        ValueError: a set has no name for a file, a file holds no questions, a weight is of no open
            set or below 0, no set counts, or a sealed set shares its name or a question with an
            open one.
    """

    def __init__(
        self,
        files: Mapping[str, Path],
        sealed: Mapping[str, Path],
        weights: Mapping[str, float],
        *,
        encode: Encode = encode_bytes,
        start: int = ord(START),
        max_tokens: int | None = None,
        world: World = ALONE,
    ) -> None:
        for name in (*files, *sealed):
            check_name(name)
        for name, weight in weights.items():
            if name not in files:
                known = ", ".join(files)
                what = "it is sealed" if name in sealed else "there is no such set"
                raise ValueError(f"weights: {name!r}: {what}; the open sets are {known}")
            if not (weight >= 0 and math.isfinite(weight)):
                raise ValueError(f"weights: that of {name!r} is {weight}, and must be 0 or more")
        self.weights = {name: float(weights.get(name, 1)) for name in files}
        if not sum(self.weights.values()) > 0:
            raise ValueError(f"weights: no question set has any: {self.weights}")
        self.sets = {name: load_questions(path) for name, path in files.items()}
        self.sealed = {name: load_questions(path) for name, path in sealed.items()}
        _check_apart(self.sets, self.sealed)
        self._how: dict[str, Any] = {
            "encode": encode,
            "start": start,
            "max_tokens": max_tokens,
            "world": world,
        }

    def look(self, model: Transformer, n_questions: int) -> float:
        """The objective of the first few questions of each set: a point of a learning curve."""
        return self._objective(
            {
                name: evaluate(model, self.sets[name][:n_questions], **self._how).nll_per_byte
                for name, weight in self.weights.items()
                if weight
            }
        )

    def ask(self, model: Transformer) -> Asked:
        """All questions."""
        scores = {name: score(model, asked, **self._how) for name, asked in self.sets.items()}
        evaluations = {name: summarise(self.sets[name], found) for name, found in scores.items()}
        return Asked(
            output=self._objective({name: e.nll_per_byte for name, e in evaluations.items()}),
            evaluations={
                name: {
                    **asdict(e),
                    "perplexity": e.perplexity,
                    "weight": self.weights[name],
                    "version": version_of(_plain(self.sets[name])),
                }
                for name, e in evaluations.items()
            },
            _open=[(name, self.sets[name], found) for name, found in scores.items()],
            _sealed=[
                (name, asked, score(model, asked, **self._how))
                for name, asked in self.sealed.items()
            ],
        )

    def _objective(self, nll_per_byte: Mapping[str, float]) -> float:
        """The weighted mean over the sets."""
        counted = {name: nll for name, nll in nll_per_byte.items() if self.weights[name]}
        total = sum(self.weights[name] * nll for name, nll in counted.items())
        return total / sum(self.weights[name] for name in counted)


@dataclass(frozen=True)
class Asked:
    """What a model has answered to all.

    Attributes:
        output: the objective: mean over the open sets, by their weights, of nats per byte.
        evaluations: of the open sets, by their names, for the metrics.
    """

    output: float
    evaluations: dict[str, dict[str, Any]]
    _open: list[tuple[str, list[Question], list[Score]]]
    _sealed: list[tuple[str, list[Question], list[Score]]]

    def save(self, job: Job) -> None:
        """Each answer, of the sealed sets too, into the job's folder."""
        for is_sealed, sets in ((False, self._open), (True, self._sealed)):
            for name, questions, scores in sets:
                save_answers(
                    job.folder,
                    job.shared_folder,
                    name,
                    _plain(questions),
                    [-scored.log_likelihoods for scored in scores],
                    is_sealed=is_sealed,
                )


def _plain(questions: Sequence[Question]) -> list[dict[str, Any]]:
    return [question.model_dump() for question in questions]


def _check_apart(
    sets: Mapping[str, Sequence[Question]], sealed: Mapping[str, Sequence[Question]]
) -> None:
    """What is in the objective is not sealed."""
    seen = {
        (question.prompt, question.choices[question.answer]): name
        for name, questions in sets.items()
        for question in questions
    }
    for name, questions in sealed.items():
        if name in sets:
            raise ValueError(f"sealed: {name!r} is also the name of an open question set")
        shared = [q for q in questions if (q.prompt, q.choices[q.answer]) in seen]
        if shared:
            other = seen[shared[0].prompt, shared[0].choices[shared[0].answer]]
            raise ValueError(
                f"sealed: {len(shared)} of the {len(questions)} questions of {name!r} are also in "
                f"the open set {other!r}, so the search would see them: take them out of one"
            )
