"""What a sweep's own models say about the questions that they were asked.

A good question is answered better by better models. One whose marked answer gets worse the better
the models are is likely to be mislabelled, or to have more than one right answer.

    s_tq  rank of trial t by its nll of question q's right answer; 1 for the lowest
    m_tq  mean of s over the other questions of the set: how good trial t is, by all but q
    r_q   rank correlation of s_tq and m_tq over the trials: above 0 for a good question

Ranks, so that no single question decides which trial is good. An answer that is marked wrongly
may get likelier first, while models learn to write at all, and less likely once they know better;
so r_q is also taken over the better half of the trials alone, by m_tq, and the clearer one counts.

A question is doubtful where r_q is below 0 by more than chance: one-sided by Student's t for rank
correlations, twice that for the two looks, and by Holm's method (1979) over the questions of a set,
which holds however they depend on each other.

The likelihood of the answer among the choices would tell sooner, but not the truth: in a sweep of
the reference job whose models were at chance it called one good question in six doubtful, for the
words that happened to be in its choices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr

from carbs.spaces import FloatArray

IntArray = NDArray[np.int64]
LEAST_TRIALS = 16  # for tails that hold


@dataclass(frozen=True, eq=False)
class AnsweredSet:
    """What T trials answered to a set of Q questions.

    Attributes:
        name: of the set.
        trials: their numbers, ``(T,)``.
        nll: of each right answer, ``(T, Q)`` in nats per byte.
        chosen: the choice that each trial holds likeliest by its nll per byte, ``(T, Q)``.
        right: the choice that is marked as right, ``(Q,)``.
        questions: each with its ``prompt`` and ``choices``; None where they are gone.
        n_other: trials that were asked another version of the set, and are left out.
        version: of the questions.
    """

    name: str
    trials: IntArray
    nll: FloatArray
    chosen: IntArray
    right: IntArray
    questions: Sequence[Mapping[str, Any]] | None = None
    n_other: int = 0
    version: str = ""

    @property
    def scores(self) -> FloatArray:
        """Of each trial, ``(T,)``: the mean over the questions, as the objective counts it."""
        return np.asarray(self.nll.mean(axis=1))

    @property
    def accuracies(self) -> FloatArray:
        """Of each trial, ``(T,)``."""
        return np.asarray((self.chosen == self.right).mean(axis=1))

    def evidence(self, level: float = 0.05) -> pd.DataFrame:
        """See :func:`question_evidence`."""
        return question_evidence(self.nll, self.chosen, self.right, level=level)


@dataclass(frozen=True)
class Seal:
    """The sealed sets of a sweep.

    Attributes:
        names: of the sets.
        n_trials: that have answered them.
        opened: ``who`` and ``when`` (UTC, ISO); None where nobody has.
        n_after: trials that have finished since.
        sets: what was answered; empty before they are opened.
        check: what the check run answered, by the name of the set: its score in nats per byte, and
            its accuracy. Empty before they are opened, and where there was none.
    """

    names: tuple[str, ...]
    n_trials: int
    opened: Mapping[str, Any] | None = None
    n_after: int = 0
    sets: tuple[AnsweredSet, ...] = ()
    check: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def question_evidence(
    nll: FloatArray, chosen: IntArray, right: IntArray, *, level: float = 0.05
) -> pd.DataFrame:
    """Which questions of a set are doubtful, by models of different quality.

    Args:
        nll: of each question's right answer, in any unit, ``(T, Q)``: a row a model.
        chosen: the choice that each model holds likeliest, ``(T, Q)``, counted from 0.
        right: the choice that is marked as right, ``(Q,)``.
        level: chance that any good question of the set is called doubtful.

    Returns:
        A row a question: ``question`` (from 0), ``correlation`` r, ``p_value`` (corrected),
        ``preferred`` (what the better half of the models choose most often), ``share`` (of them
        that do) and ``verdict``: ``mislabelled`` where most of them choose one and the same other
        answer, ``ambiguous`` where they do not, and nothing where there is no doubt.

    Raises:
        ValueError: fewer than 16 models or two questions, or arrays that do not fit together.
    """
    nll, chosen, right = np.asarray(nll, dtype=float), np.asarray(chosen), np.asarray(right)
    if nll.ndim != 2 or chosen.shape != nll.shape or right.shape != nll.shape[1:]:
        raise ValueError(
            f"expected nll and chosen of models x questions and right of questions, and they are "
            f"{nll.shape}, {chosen.shape} and {right.shape}"
        )
    is_finite = np.isfinite(nll).all(axis=1)
    nll, chosen = nll[is_finite], chosen[is_finite]
    n_models, n_questions = nll.shape
    if n_models < LEAST_TRIALS or n_questions < 2:
        raise ValueError(
            f"{n_models} models and {n_questions} questions are too few to judge a question by: "
            f"it takes {LEAST_TRIALS} models and 2 questions"
        )
    ranks = _ranks(nll)
    others = (ranks.sum(axis=1, keepdims=True) - ranks) / (n_questions - 1)
    r = rank_correlations(ranks, others)
    p = _chance_of_less(r, n_models)
    n_better = n_models // 2
    if n_better >= LEAST_TRIALS:
        best = np.argsort(others, axis=0, kind="stable")[:n_better]
        of_best = rank_correlations(*(np.take_along_axis(x, best, 0) for x in (ranks, others)))
        p_of_best = _chance_of_less(of_best, n_better)
        r = np.where(p_of_best < p, of_best, r)
        p = np.minimum(1, 2 * np.minimum(p, p_of_best))
    p = _holm(p)
    better = chosen[np.argsort(nll.mean(axis=1), kind="stable")[: (n_models + 1) // 2]]
    rows = []
    for q in range(n_questions):
        answers, counts = np.unique(better[:, q], return_counts=True)
        preferred, share = int(answers[counts.argmax()]), float(counts.max() / len(better))
        is_other = preferred != right[q] and share > 0.5
        verdict = "" if p[q] > level else "mislabelled" if is_other else "ambiguous"
        rows.append((q, r[q], p[q], preferred, share, verdict))
    names = ("question", "correlation", "p_value", "preferred", "share", "verdict")
    return pd.DataFrame(rows, columns=list(names))


def rank_correlations(first: FloatArray, second: FloatArray) -> FloatArray:
    """Spearman's of ``(n, m)`` values, column by column: ``(m,)``; 0 where a column is constant."""
    x, y = (ranks - ranks.mean(axis=0) for ranks in (_ranks(first), _ranks(second)))
    scale = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    found = np.zeros(len(scale))
    return np.asarray(np.divide((x * y).sum(axis=0), scale, out=found, where=scale > 0))


def _ranks(values: FloatArray) -> FloatArray:
    """Of each column, from 1; equal values share theirs."""
    return pd.DataFrame(values).rank().to_numpy()


def _chance_of_less(r: FloatArray, n: int) -> FloatArray:
    """That n independent pairs have a rank correlation of r or less."""
    r = np.clip(r, -1 + 1e-12, 1 - 1e-12)
    return np.asarray(stdtr(n - 2, r * np.sqrt((n - 2) / (1 - r**2))))


def _holm(p: FloatArray) -> FloatArray:
    """Corrected for the number of tests, however they depend on each other."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1)
    return corrected
