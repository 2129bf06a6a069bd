"""Fits of the power laws of :mod:`carbs.analysis.laws.power` to runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from carbs.analysis.laws.forecast import Family, Forecast, Member, Runs, affordable, fit_forecast
from carbs.analysis.laws.power import (
    FLOPS_PER_TOKEN,
    ComputeLaw,
    Law,
    LossLaw,
    UndeterminedLawWarning,
)
from carbs.analysis.laws.power_forms import COMPUTE_FAMILY, LOSS_FAMILY, loss_coefficients
from carbs.analysis.laws.repetition import Repetition, best_params, fit_repetition
from carbs.analysis.laws.rows import names_of_rows, positive_rows, runs_of_rows
from carbs.analysis.laws.untuned import (
    USUAL_EDGE,
    EdgePrior,
    LowerEdge,
    edge_of_bowl,
    one_sided_edge,
)
from carbs.spaces import FloatArray
from carbs.threads import on_one_thread

AnyLaw = TypeVar("AnyLaw", bound=Law)

# An axis must vary by half, for its exponent to be more than a guess.
_LEAST_RANGE = math.log(1.5)
# A coefficient is a guess if resamples leave this share of the width that it had beforehand.
_GUESS, _ENOUGH_TO_TELL_WIDTHS = 0.7, 10
_CLOSE = 1e-3  # to a bound
_N_NAMED = 10  # rows, in a sentence
_LEAST_RESAMPLES = 60  # of the coefficients, where rows are many
_FAR = math.log(100.0)  # of compute, over the largest


@on_one_thread
def fit_compute_law(
    compute_flops: ArrayLike,
    loss: ArrayLike,
    n_resamples: int = 200,
    seed: int = 0,
    *,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> ComputeLaw:
    """Fit ``L(C) = E + k C^-g`` to runs that are each the best at their compute.

    Args:
        compute_flops: C, positive, in any unit; shape ``(n,)``, n >= 4, at least two distinct.
        loss: positive, shape ``(n,)``. Rows are named by the index of a series, else from 0 on.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
        groups: marks rows of one run, shape ``(n,)``; each row is one by default.
        weights: how many measurements a row stands for, positive, shape ``(n,)``.

    Raises:
        ValueError: too few rows, rows that are not finite and positive (named), or groups of which
            there is one, or that do not name the run of each row.
    """
    C, L = positive_rows(compute_flops=compute_flops, loss=loss)
    runs = as_runs([C], C, L, groups, weights)
    enough(runs, 3)
    told = Told({0: "E", 2: "g"}, {"compute": ("k", "g")}, {1: ("k", "g")})
    fitted = fit_form(COMPUTE_FAMILY, runs, told, n_resamples, seed)

    def coefficients(theta: FloatArray) -> FloatArray:
        e, a, log_g = theta.T
        g = np.exp(log_g)
        return np.stack([np.exp(e), np.exp(a + g * runs.center[0]), g], axis=1)

    return fitted.law(ComputeLaw, ["E", "k", "g"], coefficients, compute=C, loss=L)


@on_one_thread
def fit_loss_law(
    n_params: ArrayLike,
    n_tokens: ArrayLike,
    loss: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    weights: ArrayLike | None = None,
    unique_tokens: ArrayLike | None = None,
    tuned: bool = True,
    hyperparameters: pd.DataFrame | None = None,
    n_resamples: int = 200,
    seed: int = 0,
    edge_prior: EdgePrior = USUAL_EDGE,
) -> LossLaw:
    """Fit ``L(N, D) = E + A N^-alpha + B D^-beta``.

    Args:
        n_params: N, positive, shape ``(n,)``, n >= 6.
        n_tokens: D, positive, shape ``(n,)``.
        loss: positive, shape ``(n,)``. Rows are named by the index of a series, else from 0 on.
        groups: marks rows of one run, shape ``(n,)``: they are resampled together, held out
            together, and share an error. Each row is a run of its own by default.
        weights: how many measurements a row stands for, positive, shape ``(n,)``.
        unique_tokens: where fewer than ``n_tokens``, the rest were repetitions, and count less, as
            do parameters in excess of what is best for so few; shape ``(n,)``. How much less is
            fitted (:class:`Repetition`), and stays as published where the runs do not tell it, or
            are not tuned.
        tuned: whether each run had hyperparameters about as good as there are. If not, the law is
            that of the lower edge of the runs: what they would have reached.
        hyperparameters: columns of what was varied, positive numbers, a row a run, as the learning
            rate and the batch size; the runs are then not tuned, and their best values, which move
            with scale, are found along with the law. Says so in ``fitted_to``.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
        edge_prior: what is usual of runs that are not tuned, where nothing says how.

    Raises:
        ValueError: too few rows, rows that are not finite and positive (named), groups of which
            there is one, or that do not name the run of each row, or hyperparameters in no frame.
    """
    N, D, L = positive_rows(n_params=n_params, n_tokens=n_tokens, loss=loss)
    C = FLOPS_PER_TOKEN * N * D
    repetition = None
    is_tuned = tuned and hyperparameters is None
    if unique_tokens is not None:
        U = positive_rows(n_tokens=D, unique_tokens=unique_tokens)[1]
        if (D > U).any() and len(L) > 5:
            first = as_runs([N, D], C, L, groups, weights)
            repetition, N, D = fit_repetition(N, D, U, first, is_known=not is_tuned)
    runs = as_runs([N, D], C, L, groups, weights)
    enough(runs, 5)
    said_of_edge = ""
    if not is_tuned:
        if hyperparameters is None:
            edge = one_sided_edge(LOSS_FAMILY, LOSS_FAMILY.published, runs, edge_prior)
        elif not isinstance(hyperparameters, pd.DataFrame):
            raise ValueError(
                "hyperparameters are a frame of columns, a row a run, as runs[['lr']], but are "
                f"{hyperparameters!r:.60}"
            )
        else:
            names = tuple(str(name) for name in hyperparameters.columns)
            varied = {name: hyperparameters.iloc[:, i] for i, name in enumerate(names)}
            z = np.log(np.stack(positive_rows(loss=L, **varied)[1:], axis=1))
            edge = edge_of_bowl(runs, z, names)
        said_of_edge = _said_of_edge(edge, names_of_rows(len(L), loss, n_params, n_tokens))
        kept = edge.worth > 0
        runs = replace(runs, y=edge.y, weights=runs.weights * edge.worth).only(kept)
        if kept.sum() < 6:
            raise ValueError(
                f"a law of the lower edge needs 6 runs near it, but of {len(kept)} only "
                f"{kept.sum()} are: {said_of_edge}"
            )
        N, D, L = N[kept], D[kept], L[kept]
        enough(runs, 5)
    told = Told(
        {0: "E", 3: "alpha", 4: "beta"},
        {"n_params": ("A", "alpha"), "n_tokens": ("B", "beta")},
        {1: ("A", "alpha"), 2: ("B", "beta")},
    )
    fitted = fit_form(LOSS_FAMILY, runs, told, n_resamples, seed)
    coefficients = partial(loss_coefficients, center=runs.center)
    if repetition is None:
        repetition = Repetition(best_params(*coefficients(fitted.best[None])[0, 1:].tolist()))
    return fitted.law(
        LossLaw,
        ["E", "A", "B", "alpha", "beta"],
        coefficients,
        n_params=N,
        n_tokens=D,
        loss=L,
        edge=said_of_edge,
        repetition=repetition,
    )


def _said_of_edge(edge: LowerEdge, rows: np.ndarray) -> str:
    failed = rows[edge.failed]
    named = ", ".join(map(str, failed[:_N_NAMED])) + ", ..." * (len(failed) > _N_NAMED)
    left_out = f"; {len(edge.failed)} runs far above it are left out (rows {named})"
    return edge.said + left_out * bool(len(edge.failed))


@dataclass(frozen=True)
class Told:
    """Names, to say what the runs do not tell.

    Attributes:
        coefficients: of theta, by index.
        axes: what the law depends on, in the order of x, with the coefficients that hang on it.
        levels: coefficients whose bounds are those of others, by index.
    """

    coefficients: Mapping[int, str]
    axes: Mapping[str, tuple[str, ...]]
    levels: Mapping[int, tuple[str, ...]]


@dataclass(frozen=True)
class Fitted:
    """The published form, ``best`` ``(p,)`` and ``resamples`` ``(b, p)``; and the forecast.

    ``doubts`` and ``undetermined`` are those of the law.
    """

    runs: Runs
    best: FloatArray
    resamples: FloatArray
    forecast: Forecast
    doubts: tuple[str, ...]
    undetermined: Mapping[str, str]

    def law(
        self,
        kind: Callable[..., AnyLaw],
        names: Sequence[str],
        coefficients: Callable[[FloatArray], FloatArray],
        **of_kind: object,
    ) -> AnyLaw:
        """A law of that kind, ``of_kind`` being its own fields.

        Args:
            names: of the coefficients as published.
            coefficients: theta ``(b, p)`` -> these, ``(b, c)``.
        """
        estimates = map(float, coefficients(self.best[None])[0])
        return kind(
            **dict(zip(names, estimates, strict=True)),
            **of_kind,
            center=self.runs.center,
            resamples=coefficients(self.resamples),
            residuals=self.forecast.predict(self.runs.x) - self.runs.y,
            forecast=self.forecast,
            doubts=self.doubts,
            undetermined=self.undetermined,
        )


def fit_form(family: Family, runs: Runs, told: Told, n_resamples: int, seed: int) -> Fitted:
    """The published form, alone where the runs determine it, else drawn to what is usual."""
    doubts: list[str] = []
    undetermined: dict[str, str] = {}
    for (axis, names), x in zip(told.axes.items(), runs.x.T, strict=True):
        if np.ptp(x) < _LEAST_RANGE:
            doubts.append(
                f"{axis} hardly varies (by {100 * math.expm1(np.ptp(x)):.2g}%): "
                f"{' and '.join(names)} are a guess at what is usual, and so is what the law says "
                "of other values. Vary it"
            )
            undetermined |= dict.fromkeys(names, f"{axis} hardly varies")
    forecast = fit_forecast(family, runs)
    best = family.fit(family.published, runs, tolerance=1e-12, max_steps=400).best()
    at_bound = _at_bound(family, runs, told, best)
    if at_bound:
        doubts.append(
            f"fitted alone, {', '.join(at_bound)} would be at a bound of the fit, where no loss "
            "tells it: drawn to what is usual"
        )
        undetermined |= dict.fromkeys(at_bound, "at a bound of the fit")
    far = _far(runs)
    most_E = float(forecast.predict(far)[0])
    too_high = best[0] > most_E
    if too_high:
        doubts.append(
            f"fitted alone, E would be {math.exp(best[0]):.4g}, which runs of a hundred times the "
            "compute are expected to undercut: kept below that"
        )
        undetermined["E"] = "larger runs are expected to undercut it"
    usual = family.with_usual(family.published, runs.y)
    if undetermined:
        most = {0: most_E} if too_high else {}
        best = family.fit(usual, runs, at_most=most, tolerance=1e-8, max_steps=400).best()
    rng = np.random.default_rng(seed)
    counts = runs.resampled(affordable(n_resamples, len(runs.y), _LEAST_RESAMPLES), rng)
    # What larger runs will reach is itself known to an interval, and so is an E kept below it.
    caps: list[dict[int, float]] = [{}]
    if too_high:
        levels = [0.1, 0.5, 0.9]
        lows = [forecast.interval(far, level, False)[0][0] for level in levels]
        caps = [{0: most_E}, *({0: float(low)} for low in lows)]
    resamples = np.concatenate(
        [
            family.fit(
                usual, runs, part, best[None], rng, at_most=cap, tolerance=1e-5, max_steps=200
            ).theta
            for cap, part in zip(caps, np.array_split(counts, len(caps)), strict=True)
            if len(part)
        ]
    )
    guessed = [
        name
        for name in _as_wide_as_usual(usual, told, resamples, n_resamples)
        if name not in undetermined
    ]
    if guessed:
        doubts.append(f"the runs hardly tell {', '.join(guessed)}: hardly more than what is usual")
        undetermined |= dict.fromkeys(guessed, "hardly more than what is usual")
    n, n_coefficients = len(np.unique(runs.group)), len(best)
    if n < 2 * n_coefficients:
        doubts.append(f"{n} runs are few for {n_coefficients} coefficients")
    if doubts:
        warnings.warn("; ".join(doubts), UndeterminedLawWarning, stacklevel=4)
    return Fitted(runs, best, resamples, forecast, tuple(doubts), undetermined)


def _at_bound(family: Family, runs: Runs, told: Told, theta: FloatArray) -> list[str]:
    lower, upper = family.bounds(runs.y)
    held = family.published.held
    beyond = (theta <= lower + _CLOSE) | (theta >= upper - _CLOSE)
    at_bound = {name: bool(beyond[i]) for i, name in told.coefficients.items()}
    for i, names in told.levels.items():
        if i not in held and beyond[i]:
            at_bound |= dict.fromkeys(names, True)
    return [name for name, is_so in at_bound.items() if is_so]


def _far(runs: Runs) -> FloatArray:
    """Where the runs lead to at a hundred times their largest compute, ``(1, k)``."""
    log_C = runs.log_compute - runs.log_compute.mean()
    slope = log_C @ runs.x / max(float(log_C @ log_C), 1e-12)
    return np.asarray(runs.x.mean(axis=0) + slope * (log_C.max() + _FAR))[None]


def _as_wide_as_usual(
    usual: Member, told: Told, resamples: FloatArray, n_resamples: int
) -> list[str]:
    """Coefficients that are spread as widely as before any run said something."""
    if n_resamples < _ENOUGH_TO_TELL_WIDTHS:
        return []
    found, spread, width = [], resamples.copy(), {i: d for i, (_, d) in usual.prior.items()}
    if 4 in told.coefficients:  # which is of the ratio to the third
        spread[:, 4] += spread[:, 3]
        width[4] = math.hypot(width[3], width[4])
    for i, name in told.coefficients.items():
        if spread[:, i].std() > _GUESS * width[i]:
            found.append(name)
    return found


def as_runs(
    scales: list[FloatArray],
    C: FloatArray,
    L: FloatArray,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> Runs:
    """The rows."""
    n = len(L)
    w = np.ones(n) if weights is None else positive_rows(loss=L, weights=weights)[1]
    labels = runs_of_rows(groups, n)
    group = np.unique(labels, return_inverse=True)[1].reshape(-1)
    if n > 1 and group.max() == 0:
        raise ValueError(
            f"{str(labels[0])!r} is the run of all {n} rows, and one run tells no interval: leave "
            "groups out if each row is a run of its own, else add other runs"
        )
    x = np.log(np.stack(scales, axis=1))
    center = x.mean(axis=0)
    return Runs(x - center, np.log(C), np.log(L), w, group, center)


def enough(runs: Runs, n_coefficients: int) -> None:
    n, points = len(runs.y), len(np.unique(runs.x, axis=0))
    if n < n_coefficients + 1 or points < 2:
        raise ValueError(
            f"a law with {n_coefficients} coefficients needs {n_coefficients + 1} runs at two or "
            f"more values of compute, but there are {n}"
        )
