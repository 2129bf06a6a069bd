"""The forms of the power laws of :mod:`carbs.analysis.laws.power`, and their fits to runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit

from carbs.analysis.laws.fitting import Form, stacked
from carbs.analysis.laws.forecast import (
    Family,
    Forecast,
    Member,
    Prior,
    Runs,
    affordable,
    fit_forecast,
)
from carbs.analysis.laws.power import (
    FLOPS_PER_TOKEN,
    REPETITION,
    ComputeLaw,
    Law,
    LossLaw,
    UndeterminedLawWarning,
    effective_tokens,
    names_of_rows,
    runs_of_rows,
)
from carbs.analysis.laws.repetition import fit_repetition
from carbs.analysis.laws.untuned import (
    USUAL_EDGE,
    EdgePrior,
    LowerEdge,
    edge_of_bowl,
    one_sided_edge,
)
from carbs.analysis.laws.usual import (
    COMPUTE_EXPONENT,
    EXPONENT,
    EXPONENT_RATIO,
    IRREDUCIBLE_SHARE,
    Usual,
)
from carbs.spaces import FloatArray
from carbs.threads import on_one_thread

AnyLaw = TypeVar("AnyLaw", bound=Law)

_LARGEST_EXPONENT = 3.0


# An axis must vary by half, for its exponent to be more than a guess.
_LEAST_RANGE = math.log(1.5)


# A coefficient is a guess if resamples leave this share of the width that it had beforehand.
_GUESS, _ENOUGH_TO_TELL_WIDTHS = 0.7, 10


_CLOSE = 1e-3  # to a bound
_N_NAMED = 10  # rows, in a sentence


_LEAST_RESAMPLES = 60  # of the coefficients, where rows are many


_FAR = math.log(100.0)  # of compute, over the largest


# The irreducible loss is sought down to e^-10 of the least loss: nothing.
_DEEPEST = 10.0


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
        unique_tokens: where fewer than ``n_tokens``, the rest were repetitions, and count as
            :func:`effective_tokens` says; shape ``(n,)``. How much less is fitted, and stays at the
            published R* where the runs do not tell it; of runs that are not tuned it is that one.
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
    repetition, interval = REPETITION, None
    is_tuned = tuned and hyperparameters is None
    if unique_tokens is not None:
        U = positive_rows(n_tokens=D, unique_tokens=unique_tokens)[1]
        if is_tuned and (D > U).any() and len(L) > 5:
            first = as_runs([N, D], C, L, groups, weights)
            repetition, interval = fit_repetition(LOSS_FAMILY, N, D, U, first)
        D = effective_tokens(D, U, repetition)
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

    def coefficients(theta: FloatArray) -> FloatArray:
        e, a, b, log_alpha, log_ratio = theta.T
        alpha, beta = np.exp(log_alpha), np.exp(log_alpha + log_ratio)
        A, B = np.exp(a + alpha * runs.center[0]), np.exp(b + beta * runs.center[1])
        return np.stack([np.exp(e), A, B, alpha, beta], axis=1)

    return fitted.law(
        LossLaw,
        ["E", "A", "B", "alpha", "beta"],
        coefficients,
        n_params=N,
        n_tokens=D,
        loss=L,
        edge=said_of_edge,
        repetition=repetition,
        repetition_interval=interval,
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


def _compute_form(x: FloatArray) -> Form:
    log_C = x[:, 0]

    def form(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        e, a, log_g = (theta[:, i : i + 1] for i in range(3))
        falling = a - np.exp(log_g) * log_C
        share = expit(e - falling)  # of E in the loss
        derivatives = [share, 1 - share, -(1 - share) * np.exp(log_g) * log_C]
        return np.logaddexp(e, falling), np.stack(derivatives, axis=-1)

    return form


def _loss_form(x: FloatArray) -> Form:
    log_N, log_D = x.T
    return lambda theta: loss_terms(theta, log_N, log_D)


def loss_terms(
    theta: FloatArray,
    log_N: FloatArray,
    log_D: FloatArray,
    on_N: FloatArray | float = 0.0,
    on_D: FloatArray | float = 0.0,
) -> tuple[FloatArray, FloatArray]:
    """Log loss ``(b, n)`` and its derivatives ``(b, n, 5)``; what is added to the logs of terms."""
    e, a, b, log_alpha, log_ratio = (theta[:, i : i + 1] for i in range(5))
    alpha, beta = np.exp(log_alpha), np.exp(log_alpha + log_ratio)
    u, v = a - alpha * log_N + on_N, b - beta * log_D + on_D
    value = np.logaddexp(e, np.logaddexp(u, v))
    J = np.empty((*value.shape, 5))
    J[..., 0] = np.exp(e - value)  # of E in the loss
    J[..., 1] = np.exp(u - value)
    J[..., 2] = np.exp(v - value)
    J[..., 4] = -J[..., 2] * beta * log_D
    J[..., 3] = -J[..., 1] * alpha * log_N + J[..., 4]
    return value, J


def _compute_bounds(y: FloatArray) -> tuple[FloatArray, FloatArray]:
    exponents = math.log(1e-3), math.log(_LARGEST_EXPONENT)
    least = y.min()
    lower = np.array([least - _DEEPEST, least - 30, exponents[0]])
    return lower, np.array([least, y.max() + 30, exponents[1]])


def _loss_bounds(y: FloatArray) -> tuple[FloatArray, FloatArray]:
    exponents = math.log(1e-2), math.log(_LARGEST_EXPONENT)
    least, most = y.min(), y.max()
    lower = np.array([least - _DEEPEST, least - 30, least - 30, exponents[0], -3.0])
    return lower, np.array([least, most + 30, most + 30, exponents[1], 3.0])


def _compute_starts(y: FloatArray) -> FloatArray:
    least, middle = math.exp(y.min()), math.exp(float(np.median(y)))
    return np.array(
        [
            [math.log(share * least), math.log(max(middle - share * least, 0.05 * least)), log_g]
            for share in (0.1, 0.5, 0.8, 0.95)
            for log_g in np.log([0.05, 0.2, 0.5, 1.0])
        ]
    )


def _loss_starts(y: FloatArray) -> FloatArray:
    least, middle = math.exp(y.min()), math.exp(float(np.median(y)))
    starts = []
    for share in (0.4, 0.8):
        term = math.log(max(middle - share * least, 0.05 * least) / 2)
        for alpha in (0.25, 0.6):
            starts += [
                [math.log(share * least), term, term, math.log(alpha), math.log(beta / alpha)]
                for beta in (0.25, 0.6)
            ]
    return np.array(starts)


# Of a published fit, and of the backtests' runs.
_PUBLISHED_DELTA = 1e-3


# How far a term is from a third of the least loss, at the middle of the runs.
_TERM = (math.log(0.3), 1.5)
# Logs of the parameters and tokens at which terms of language models are known better. Runs of
# fewer than the least are counted in millions, or are of something else.
_REFERENCE, _LEAST_SCALES = np.log([1e9, 2e10]), np.log([1e5, 1e6])


def _usual_level(y: FloatArray) -> Usual:
    """Of log E, by the log losses."""
    return float(y.min()) + IRREDUCIBLE_SHARE[0], IRREDUCIBLE_SHARE[1]


def _usual_compute(y: FloatArray) -> dict[int, tuple[float, float]]:
    return {0: _usual_level(y), 2: COMPUTE_EXPONENT}


def _usual_loss(y: FloatArray) -> dict[int, tuple[float, float]]:
    return {0: _usual_level(y), 3: EXPONENT, 4: EXPONENT_RATIO}


def _expected_compute(prior: Prior, runs: Runs) -> Form:
    # Of sweeps of anything: their exponents are not those of language models.
    return off_usual({**_usual_compute(runs.y), 1: _term(runs.y)})


def _expected_loss(prior: Prior, runs: Runs) -> Form:
    (term, width), exponent, ratio = (
        (math.log(median), deviation)
        for median, deviation in (prior.term, prior.exponent, prior.ratio)
    )
    expected = {0: _usual_loss(runs.y)[0], 3: exponent, 4: ratio}
    if (runs.center[:2] < _LEAST_SCALES).any():
        return off_usual({**expected, 1: _term(runs.y), 2: _term(runs.y)})
    n, d = _REFERENCE - runs.center[:2]

    def terms_off(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        e, a, b, log_alpha, log_ratio = theta[:, :5].T
        alpha, beta = np.exp(log_alpha), np.exp(log_alpha + log_ratio)
        off = np.stack([a - alpha * n, b - beta * d], axis=1) - e[:, None] - term
        J = np.zeros((*off.shape, theta.shape[1]))
        J[:, :, 0] = -1
        J[:, 0, 1] = J[:, 1, 2] = 1
        J[:, 0, 3] = -alpha * n
        J[:, 1, 3] = J[:, 1, 4] = -beta * d
        return off / width, J / width

    return stacked(off_usual(expected), terms_off)


def _term(y: FloatArray) -> tuple[float, float]:
    return float(y.min()) + _TERM[0], _TERM[1]


def off_usual(usual: Mapping[int, tuple[float, float]]) -> Form:
    """How far coefficients are from means, in deviations; both by index."""
    index = list(usual)
    mean, deviation = np.array(list(usual.values())).T

    def off(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        J = np.zeros((len(theta), len(index), theta.shape[1]))
        J[:, np.arange(len(index)), index] = 1 / deviation
        return (theta[:, index] - mean) / deviation, J

    return off


COMPUTE_FAMILY = Family(
    form=_compute_form,
    bounds=_compute_bounds,
    starts=_compute_starts,
    published=Member(delta=1e-2),
    usual=_usual_compute,
    expected=_expected_compute,
    directions=np.array([[1.0]]),
)


LOSS_FAMILY = Family(
    form=_loss_form,
    bounds=_loss_bounds,
    starts=_loss_starts,
    published=Member(delta=_PUBLISHED_DELTA),
    usual=_usual_loss,
    expected=_expected_loss,
    directions=np.array([[1.0, 1.0], [-1.0, 1.0]]),
    tail=10.0,
)


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


def positive_rows(**columns: ArrayLike) -> list[FloatArray]:
    """Columns of equal length, finite and positive; errors have the :func:`names_of_rows`."""
    arrays = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or any(array.ndim != 1 for array in arrays.values()):
        told = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"{told} must be lists of equal length")
    wrong = np.flatnonzero(
        np.any([~(np.isfinite(array) & (array > 0)) for array in arrays.values()], axis=0)
    )
    if len(wrong):
        rows = names_of_rows(len(next(iter(arrays.values()))), *columns.values())[wrong].tolist()
        raise ValueError(f"rows {rows} have a {' or '.join(arrays)} not finite and positive")
    return list(arrays.values())
