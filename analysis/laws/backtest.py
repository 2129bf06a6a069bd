"""Would it have been right? Fit the cheap runs, predict the dear ones, and compare.

Random splits flatter a scaling law: a held-out run has neighbours. What a law is for is the run
that is dearer than all that have been made, so runs are held out by compute.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from carbs.analysis.laws.power import ExtrapolationWarning, UndeterminedLawWarning
from carbs.analysis.laws.rows import runs_of_rows
from carbs.spaces import FloatArray


class Law(Protocol):
    """What can be backtested: the laws of :mod:`carbs.analysis.laws.power`, or one of your own."""

    def predict(self, *scales: Any) -> FloatArray:
        """Losses at these scales."""

    def interval(self, *scales: Any, level: float, **options: Any) -> tuple[FloatArray, FloatArray]:
        """Where new runs are expected there."""


@dataclass(frozen=True)
class Backtest:
    """Predicted against measured.

    Attributes:
        runs: one row a held-out run of a split: factor, compute_flops, extrapolation (compute over
            the largest that was fitted), measured, predicted, low, high, error (relative), covered.
        level: of the intervals.
    """

    runs: pd.DataFrame
    level: float

    @property
    def splits(self) -> pd.DataFrame:
        """One row a split: how many were fitted and held out, errors, coverage, mean width."""
        return self._table("factor")

    @property
    def by_extrapolation(self) -> pd.DataFrame:
        """The same over how far beyond the fit a run lies, in half decades."""
        edges = [1.0, 10**0.5, 10.0, 10**1.5, 100.0, math.inf]
        names = ["1 to 3", "3 to 10", "10 to 32", "32 to 100", "over 100"]
        bins = pd.cut(self.runs["extrapolation"], edges, labels=names)
        table = self._table(bins.astype(str))
        return table.loc[[name for name in names if name in table.index]]

    def _table(self, by: Any) -> pd.DataFrame:
        runs = self.runs.assign(
            abs_error=self.runs["error"].abs(),
            width=(self.runs["high"] - self.runs["low"]) / self.runs["measured"],
        )
        return runs.groupby(by).agg(
            n_fitted=("n_fitted", "min"),
            n_held_out=("error", "size"),
            mean_abs_error=("abs_error", "mean"),
            mean_error=("error", "mean"),
            coverage=("covered", "mean"),
            mean_width=("width", "mean"),
        )


def backtest(
    fit: Callable[..., Law],
    *scales: ArrayLike,
    loss: ArrayLike,
    compute_flops: ArrayLike | None = None,
    factors: Sequence[float] = (3.0, 10.0, 30.0, 100.0),
    level: float = 0.9,
    groups: ArrayLike | None = None,
) -> Backtest:
    """Fit the runs with at most 1/f of the largest compute and predict all the others.

    Args:
        fit: :func:`fit_compute_law`, :func:`fit_loss_law`, or any function of the scales and the
            loss that returns a law; with ``groups`` if they are given.
        *scales: what the law depends on, in the order of ``fit``, each of shape ``(n,)``.
        loss: measured, shape ``(n,)``.
        compute_flops: by which runs are held out, shape ``(n,)``; by default 6 times the product of
            two scales, or the scale where it is one.
        factors: f of each split; those that leave too few runs to fit are left out.
        level: of the intervals.
        groups: marks rows of one run, shape ``(n,)``; a run is never on both sides.

    Raises:
        ValueError: no factor leaves enough runs on both sides.
    """
    columns = [np.asarray(scale, dtype=float) for scale in scales]
    L = np.asarray(loss, dtype=float)
    if compute_flops is not None:
        C = np.asarray(compute_flops, dtype=float)
    else:
        C = columns[0] if len(columns) == 1 else 6.0 * columns[0] * columns[1]
    labels = runs_of_rows(groups, len(L))
    end = pd.Series(C).groupby(labels).transform("max").to_numpy()
    tables, refused = [], ""
    for factor in factors:
        cap = C.max() / factor
        fitted = end <= cap
        held = ~fitted & (cap < C)
        if not fitted.any() or not held.any():
            continue
        own = {} if groups is None else {"groups": labels[fitted]}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UndeterminedLawWarning)
                law = fit(*(column[fitted] for column in columns), L[fitted], **own)
        except ValueError as error:
            refused = f": {error}"
            continue
        there = [column[held] for column in columns]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExtrapolationWarning)
            predicted = law.predict(*there)
            low, high = law.interval(*there, level=level)
        tables.append(
            pd.DataFrame(
                {
                    "factor": factor,
                    "n_fitted": int(fitted.sum()),
                    "compute_flops": C[held],
                    "extrapolation": C[held] / C[fitted].max(),
                    "measured": L[held],
                    "predicted": predicted,
                    "low": low,
                    "high": high,
                    "error": predicted / L[held] - 1,
                    "covered": (low <= L[held]) & (L[held] <= high),
                }
            )
        )
    if not tables:
        raise ValueError(f"none of the factors {list(factors)} leaves enough runs to fit{refused}")
    return Backtest(pd.concat(tables, ignore_index=True), level)
