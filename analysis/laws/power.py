"""Scaling laws of the loss in compute, and in parameters and tokens.

Notation
--------
C        compute of a run in FLOPs (any unit of cost will do for L(C)); C = 6 N D for L(N, D)
N, D     parameters and training tokens of a run
L        its loss
E        irreducible loss;  ``L(C) = E + k C^-g``,  ``L(N, D) = E + A N^-alpha + B D^-beta``
theta    ``(log E, log k, log g)``, or ``(log E, log A, log B, log alpha, log(beta/alpha))``:
         positive coefficients, whatever the step. Scales are centred in logs.

The *coefficients* are those of the published form, fitted as published: the Huber loss (delta 1e-3)
of log residuals summed over rows, each row alike (Hoffmann et al. 2022, "Training Compute-Optimal
Large Language Models", eq. 3; Besiroglu et al. 2024, "Chinchilla Scaling: A replication attempt").
They are what to compare with other people's fits, and ``curve`` draws them. All that is *expected*
(``predict``, ``interval``, ``compute_optimal``, ``isoflop``, figures) is one forecast, the
posterior of :mod:`carbs.analysis.laws.forecast`, which never falls below E: the published form
alone extrapolates worse, and with far more confidence than it has earned.

Where the runs do not tell a coefficient, it is drawn to what such coefficients usually are, its
interval is as wide as that is vague, and an :class:`UndeterminedLawWarning` names it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import ndtri

from carbs.analysis.laws.forecast import Forecast
from carbs.analysis.laws.repetition import Repetition
from carbs.analysis.laws.rows import check_level, positive
from carbs.analysis.laws.shown import Shown
from carbs.spaces import FloatArray

FLOPS_PER_TOKEN = 6.0  # and parameter: two forward, four backward
_SERVED_FLOPS_PER_TOKEN = 2.0
_FAR_DECADES = 2.05  # a hundredfold, and a rounding
# The split of a budget is known if the interval of the best model size is no wider than this.
_WIDEST_SPLIT = 30.0
# Runs of a budget must differ by that in tokens a parameter to tell which is best.
_LEAST_SPLITS = math.log(1.5)
# Muennighoff et al. measured up to so many epochs.
_MOST_EPOCHS = 44.0
# Of a budget's optimum.
_N_DRAWS = 400
_TOKENS_STEP = 0.1  # in logs, between numbers of tokens that are looked at
# How softly a forecast ends at E, as a share of it.
_SOFT_FLOOR = 5e-4


class ExtrapolationWarning(UserWarning):
    """A law was asked beyond a hundred times its largest compute, or beyond measured repetition."""


class UndeterminedLawWarning(UserWarning):
    """The runs do not tell some coefficients of a law, which are no more than a guess."""


class UndeterminedSplitWarning(UserWarning):
    """Runs in which parameters and tokens grew together do not tell how to divide a budget."""


@dataclass(frozen=True, kw_only=True)
class Law(Shown):
    """What the laws of the loss share.

    Attributes:
        E: irreducible loss, in the unit of the loss; no forecast is below it.
        loss: what the law was fitted to, shape ``(n,)``.
        resamples: coefficients of the bootstrap, in the order of the fields, ``(n_resamples, c)``.
        residuals: log residuals of the forecast, shape ``(n,)``.
        forecast: the posterior behind ``predict`` and ``interval``.
        center: of the logs of what the law depends on.
        doubts: what the runs do not tell, a sentence each.
        undetermined: the coefficients that are a guess, and why in a few words.
    """

    E: float
    loss: FloatArray = field(repr=False)
    resamples: FloatArray = field(repr=False)
    residuals: FloatArray = field(repr=False)
    forecast: Forecast = field(repr=False)
    center: FloatArray = field(repr=False)
    doubts: tuple[str, ...] = ()
    undetermined: Mapping[str, str] = field(default_factory=dict)

    def _expected(self, scales: FloatArray) -> FloatArray:
        """Losses, ``(n,)``, of centred logs ``(n, k)``."""
        return self._floored(np.exp(self._log_expected(scales)), self.E)

    def _log_expected(self, scales: FloatArray) -> FloatArray:
        return self.forecast.predict(scales)

    def _range(
        self, scales: FloatArray, level: float, new_measurement: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """(low, high), each ``(n,)``."""
        low, high = self.forecast.interval(scales, level, new_measurement)
        center, half = self._log_expected(scales), (high - low) / 2
        low, high = np.exp(center - half), np.exp(center + half)
        # A run lies below E by its noise at most, and E is known to its interval.
        lowest = float(np.quantile(self.resamples[:, 0], (1 - level) / 2))
        noise = float(self.forecast.share @ self.forecast.noise)
        lowest = min(lowest, self.E) * math.exp(-2 * noise * new_measurement)
        middle = self._floored(np.exp(center), self.E)
        low = np.minimum(self._floored(low, lowest), middle)
        return low, np.maximum(self._floored(high, self.E), middle)

    @staticmethod
    def _floored(loss: FloatArray, floor: float) -> FloatArray:
        above = loss / floor - 1
        return np.asarray(floor * (1 + 0.5 * (above + np.hypot(above, 2 * _SOFT_FLOOR))))

    def _predict(self, scales: FloatArray, compute: FloatArray) -> FloatArray:
        self._say_if_far(compute)
        x = scales.reshape(-1, len(self.center)) - self.center
        return self._expected(x).reshape(compute.shape)

    def _interval(
        self, scales: FloatArray, compute: FloatArray, level: float, new_measurement: bool
    ) -> tuple[FloatArray, FloatArray]:
        check_level(level)
        self._say_if_far(compute)
        x = scales.reshape(-1, len(self.center)) - self.center
        low, high = self._range(x, level, new_measurement)
        return low.reshape(compute.shape), high.reshape(compute.shape)

    def _say_if_far(self, compute: FloatArray, stacklevel: int = 4) -> None:
        if not compute.size:
            return
        decades = (math.log(compute.max()) - self.forecast.log_compute_max) / math.log(10)
        if decades > _FAR_DECADES:
            warnings.warn(
                f"asked at {10**decades:.3g} times the largest compute that the law was fitted to: "
                "measure a run in between before betting on it",
                ExtrapolationWarning,
                stacklevel=stacklevel,
            )

    def _summary(self, names: list[str], level: float) -> pd.DataFrame:
        check_level(level)
        tail = (1 - level) / 2
        estimate = np.array([getattr(self, name) for name in names])
        low, high = np.quantile(self.resamples, [tail, 1 - tail], axis=0)
        return pd.DataFrame(
            {
                "coefficient": names,
                "estimate": estimate,
                "low": np.minimum(low, estimate),
                "high": np.maximum(high, estimate),
                "note": [self.undetermined.get(name, "") for name in names],
            }
        )

    def _fitted_to(self, compute: FloatArray) -> str:
        spread = math.sqrt(float(np.mean(self.residuals**2)))
        return (
            f"{len(self.loss)} runs from {compute.min():.3g} to {compute.max():.3g}, "
            f"residual {100 * spread:.2g}% of the loss"
        )


@dataclass(frozen=True)
class ComputeLaw(Law):
    """``L(C) = E + k C^-g``.

    Attributes:
        E: irreducible loss, in the unit of the loss.
        k: in the unit of the loss, at C = 1.
        g: exponent, positive.
        compute: of the runs it was fitted to, shape ``(n,)``.
    """

    k: float
    g: float
    compute: FloatArray = field(repr=False)

    def predict(self, compute: ArrayLike) -> FloatArray:
        """The loss to expect, same shape as ``compute``."""
        C = positive(compute=compute)[0]
        return self._predict(np.log(C)[..., None], C)

    def curve(self, compute: ArrayLike) -> FloatArray:
        """The published form with the law's coefficients, same shape as ``compute``."""
        return np.asarray(self.E + self.k * np.asarray(compute, dtype=float) ** -self.g)

    def interval(
        self, compute: ArrayLike, level: float = 0.9, new_measurement: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Where a new run's loss is expected, or with ``new_measurement=False`` where the law is.

        Returns:
            (low, high), each in the shape of ``compute``.
        """
        C = positive(compute=compute)[0]
        return self._interval(np.log(C)[..., None], C, level, new_measurement)

    def summary(self, level: float = 0.9) -> pd.DataFrame:
        """One row a coefficient: estimate, low, high, and a note where the runs do not tell it."""
        return self._summary(["E", "k", "g"], level)

    @cached_property
    def fitted_to(self) -> str:
        """In words: rows, range, residual, errors when extrapolated."""
        return self._fitted_to(self.compute)


@dataclass(frozen=True)
class Allocation:
    """How a budget of compute is best spent.

    Attributes:
        compute_flops: the budget.
        n_params, n_tokens: N and D, each with the interval it is known to.
        loss: predicted, with the interval of a new run.
        epochs: passes over the unique tokens; at most 1 where they were not given.
    """

    compute_flops: float
    n_params: float
    n_params_interval: tuple[float, float]
    n_tokens: float
    n_tokens_interval: tuple[float, float]
    loss: float
    loss_interval: tuple[float, float]
    epochs: float


@dataclass(frozen=True)
class LossLaw(Law):
    """``L(N, D) = E + A N^-alpha + B D^-beta``.

    Attributes:
        E: irreducible loss, in the unit of the loss.
        A, alpha: of what too few parameters cost; A in the unit of the loss, at N = 1.
        B, beta: of what too few tokens cost; B in the unit of the loss, at D = 1.
        n_params, n_tokens: of the runs it was fitted to, each ``(n,)``; where tokens repeat, those
            that count.
        repetition: how soon it wears out.
        edge: how the lower edge of untuned runs was found, in words; empty where they were tuned.
    """

    A: float
    B: float
    alpha: float
    beta: float
    n_params: FloatArray = field(repr=False)
    n_tokens: FloatArray = field(repr=False)
    repetition: Repetition
    edge: str = ""

    def predict(
        self, n_params: ArrayLike, n_tokens: ArrayLike, unique_tokens: ArrayLike | None = None
    ) -> FloatArray:
        """The loss to expect, in the common shape of the arguments.

        Args:
            unique_tokens: where fewer than ``n_tokens``, the rest are repetitions. They count
                less, and so do parameters in excess of what is best for so few tokens
                (:class:`Repetition`).
        """
        return self._predict(*self._scales(n_params, n_tokens, unique_tokens))

    def curve(self, n_params: ArrayLike, n_tokens: ArrayLike) -> FloatArray:
        """The published form with the law's coefficients, in the common shape of the arguments."""
        N, D = np.asarray(n_params, dtype=float), np.asarray(n_tokens, dtype=float)
        return np.asarray(self.E + self.A * N**-self.alpha + self.B * D**-self.beta)

    def interval(
        self,
        n_params: ArrayLike,
        n_tokens: ArrayLike,
        level: float = 0.9,
        new_measurement: bool = True,
        unique_tokens: ArrayLike | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """Where a new run's loss is expected, or with ``new_measurement=False`` where the law is.

        Returns:
            (low, high), each in the common shape of the arguments.
        """
        scales, C = self._scales(n_params, n_tokens, unique_tokens)
        low, high = self._interval(scales, C, level, new_measurement)
        return self._unsure_of_repetition(low, high, level, n_params, n_tokens, unique_tokens)

    def _unsure_of_repetition(
        self,
        low: FloatArray,
        high: FloatArray,
        level: float,
        n_params: ArrayLike,
        n_tokens: ArrayLike,
        unique_tokens: ArrayLike | None,
    ) -> tuple[FloatArray, FloatArray]:
        """An interval with what is not known of the decays, which adds to it as deviations do."""
        ends = list(self.repetition.ends())
        if unique_tokens is None or not ends:
            return low, high

        def expected(repetition: Repetition) -> FloatArray:
            law = replace(self, repetition=repetition)
            scales, C = law._scales(n_params, n_tokens, unique_tokens)
            return law._expected(scales.reshape(-1, 2) - self.center).reshape(C.shape)

        middle = expected(self.repetition)
        below, above = middle - low, high - middle
        wider = ndtri(0.5 + level / 2) / ndtri(0.95)
        for worse, better in ends:
            below = np.hypot(below, wider * np.maximum(middle - expected(better), 0))
            above = np.hypot(above, wider * np.maximum(expected(worse) - middle, 0))
        return middle - below, middle + above

    def summary(self, level: float = 0.9) -> pd.DataFrame:
        """One row a coefficient: estimate, low, high, and a note where the runs do not tell it."""
        return self._summary(["E", "A", "B", "alpha", "beta"], level)

    @cached_property
    def fitted_to(self) -> str:
        """In words: rows, range, residual, errors when extrapolated."""
        text = self._fitted_to(FLOPS_PER_TOKEN * self.n_params * self.n_tokens)
        return "; ".join(filter(None, [text, self.edge, self.repetition.said()]))

    def compute_optimal(
        self,
        compute_flops: float,
        level: float = 0.9,
        lifetime_tokens: float = 0.0,
        unique_tokens: float | None = None,
    ) -> Allocation:
        """The model size and the tokens with the least loss to expect for a budget.

        The optimum is that of what ``predict`` expects, its interval that of laws drawn from the
        forecast's posterior. A warning says where the runs do not determine the split.

        Args:
            compute_flops: C, which pays ``6 N D`` for training and ``2 N`` for each token served.
            level: of the intervals.
            lifetime_tokens: how many tokens the model will serve. The more, the smaller it should
                be and the longer be trained (Sardana et al. 2024, "Beyond Chinchilla-Optimal").
            unique_tokens: that there are; what is trained on beyond them is repeated.

        Raises:
            ValueError: a budget or unique tokens not positive, lifetime tokens below 0, a level
                not between 0 and 1.
        """
        positive(compute_flops=compute_flops)
        check_level(level)
        if not (math.isfinite(lifetime_tokens) and lifetime_tokens >= 0):
            raise ValueError(
                f"lifetime_tokens are tokens that the model will serve, 0 or more, "
                f"but are {lifetime_tokens:g}"
            )
        if unique_tokens is not None:
            positive(unique_tokens=unique_tokens)

        def along(log_N: FloatArray) -> FloatArray:
            D = _tokens_paid_for(compute_flops, np.exp(log_N), lifetime_tokens)
            scales, _ = self._scales(np.exp(log_N), np.where(D > 0, D, 1.0), unique_tokens)
            return np.where(D[:, None] > 0, scales - self.center, np.nan)

        first = 0.5 * math.log(compute_flops / FLOPS_PER_TOKEN)
        middle, low, high = least_along_budget(
            self.forecast, along, first, level, self._log_expected
        )
        guessed = any("hardly varies" in why for why in self.undetermined.values())
        if guessed or self._grew_together() or high - low > math.log(_WIDEST_SPLIT):
            warnings.warn(
                f"the runs do not tell how to divide a budget: models of {math.exp(low):.2g} to "
                f"{math.exp(high):.2g} parameters may be best. Vary the tokens for each parameter",
                UndeterminedSplitWarning,
                stacklevel=2,
            )
        N = math.exp(middle)
        N_low, N_high = math.exp(low), math.exp(high)

        def tokens(n_params: float) -> float:
            return float(_tokens_paid_for(compute_flops, n_params, lifetime_tokens))

        D = tokens(N)
        epochs = max(D / unique_tokens, 1.0) if unique_tokens else 1.0
        if epochs > _MOST_EPOCHS:
            warnings.warn(
                f"{epochs:.3g} epochs over {unique_tokens:.3g} unique tokens: repetition was "
                f"measured up to {_MOST_EPOCHS:.0f}. Find more data, or spend less",
                ExtrapolationWarning,
                stacklevel=2,
            )
        scales, C = self._scales(N, D, unique_tokens)
        self._say_if_far(C, stacklevel=3)
        x = scales.reshape(1, -1) - self.center
        loss_low, loss_high = self._unsure_of_repetition(
            *self._range(x, level),
            level,
            [N],
            [D],
            None if unique_tokens is None else [unique_tokens],
        )
        return Allocation(
            compute_flops=compute_flops,
            n_params=N,
            n_params_interval=(N_low, N_high),
            n_tokens=D,
            n_tokens_interval=(tokens(N_high), tokens(N_low)),
            loss=float(self._expected(x)[0]),
            loss_interval=(float(loss_low[0]), float(loss_high[0])),
            epochs=D / unique_tokens if unique_tokens else 1.0,
        )

    def _log_expected(self, scales: FloatArray) -> FloatArray:
        # More tokens never make a model worse: the least of all that are fewer. What small models
        # on many tokens show of the form's misfit would else let the loss of large ones rise.
        log_N, log_D = scales.T
        few = np.log(self.n_tokens) - self.center[1]
        fewest = log_N + (few - np.log(self.n_params) + self.center[0]).min()
        fewer = np.arange(few.min(), log_D.max(initial=few.min()), _TOKENS_STEP)
        expected = self.forecast.predict(scales)
        for tokens in fewer:
            at = np.flatnonzero((fewest <= tokens) & (tokens < log_D))
            path = np.stack([log_N[at], np.full(len(at), tokens)], axis=1)
            expected[at] = np.minimum(expected[at], self.forecast.predict(path))
        return expected

    def _grew_together(self) -> bool:
        """Whether runs of a budget were all divided alike."""
        log_C = np.log(self.n_tokens * self.n_params)
        log_C -= log_C.mean()
        log_ratio = np.log(self.n_tokens / self.n_params)
        slope = log_C @ log_ratio / max(float(log_C @ log_C), 1e-12)
        return bool(np.ptp(log_ratio - slope * log_C) < _LEAST_SPLITS)

    def isoflop(self, compute_flops: float, n_points: int = 41, level: float = 0.9) -> pd.DataFrame:
        """The loss along one budget, over model sizes from a thirtieth to thirty times the best.

        Returns:
            n_params, n_tokens, tokens_per_param, loss, low, high; one row a size.
        """
        best = self.compute_optimal(compute_flops, level).n_params
        N = best * np.geomspace(1 / 30, 30, n_points)
        D = compute_flops / (FLOPS_PER_TOKEN * N)
        scales, _ = self._scales(N, D, None)
        low, high = self._range(scales - self.center, level)
        return pd.DataFrame(
            {
                "n_params": N,
                "n_tokens": D,
                "tokens_per_param": D / N,
                "loss": self._expected(scales - self.center),
                "low": low,
                "high": high,
            }
        )

    def _scales(
        self, n_params: ArrayLike, n_tokens: ArrayLike, unique_tokens: ArrayLike | None
    ) -> tuple[FloatArray, FloatArray]:
        N, D = np.broadcast_arrays(*positive(n_params=n_params, n_tokens=n_tokens))
        C = FLOPS_PER_TOKEN * N * D
        if unique_tokens is not None:
            (unique,) = positive(unique_tokens=unique_tokens)
            N, D, unique = np.broadcast_arrays(N, D, unique)
            N, D = self.repetition.effective(N, D, unique)
            C = np.broadcast_to(C, N.shape)
        return np.stack([np.log(N), np.log(D)], axis=-1), C


def least_along_budget(
    forecast: Forecast,
    along: Callable[[FloatArray], FloatArray],
    first: float,
    level: float,
    expected: Callable[[FloatArray], FloatArray] | None = None,
) -> tuple[float, float, float]:
    """Log N with the least loss to expect, and the interval (low, high) that it is known to.

    Args:
        along: log N ``(m,)`` -> what the law depends on, ``(m, k)``; not a number where the budget
            pays for none.
        first: log N to begin at.
        expected: log losses ``(n,)`` of what the law depends on; those of the forecast by default.
    """
    expected = expected or forecast.predict

    def losses(predict: Callable[[FloatArray], FloatArray], log_N: FloatArray) -> FloatArray:
        x = along(log_N)
        paid = np.asarray(np.isfinite(x).all(axis=1))
        return np.where(paid, predict(np.where(paid[:, None], x, 0.0)), np.inf)

    best, width = first, 12.0
    while width > 1e-4:
        log_N = best + np.linspace(-width, width, 121)
        best, width = float(log_N[np.argmin(losses(expected, log_N))]), width / 20
    log_N = best + np.linspace(-6, 6, 481)
    optima = log_N[np.argmin(losses(forecast.draws(_N_DRAWS), log_N), axis=1)]
    low, high = np.quantile(optima, [(1 - level) / 2, (1 + level) / 2])
    return best, min(float(low), best), max(float(high), best)


def _tokens_paid_for(C: float, n_params: ArrayLike, served: float) -> FloatArray:
    """D that a budget pays for, after serving; negative where it pays for none."""
    N = np.asarray(n_params, dtype=float)
    return (C / N - _SERVED_FLOPS_PER_TOKEN * served) / FLOPS_PER_TOKEN
