"""How much less repetition is worth, from runs that repeat their tokens.

Notation
--------
N, D, U  parameters of a run, the tokens that it was trained on, and how many of these were unique
N_U      parameters that are best for U tokens seen once: of a model of that size, more parameters
         would gain as much as more tokens
R_D, R_N decays of repeated tokens, and of parameters beyond N_U, in multiples of U and of N_U

What exceeds a fresh amount x is worth ``x R (1 - exp(-(amount/x - 1)/R))`` more than x, for tokens
beyond U and for parameters beyond N_U (Muennighoff et al. 2023, "Scaling Data-Constrained Language
Models", eq. 5 and 6). By the first alone the answer to few tokens is a larger model; by both it is
a smaller one that sees them more often.

Theirs is a law of its own, in which parameters in excess are worth less of unique tokens too. Here
they are worth less only by as much as tokens repeat: N counts as N times what it is worth for U
over what it is worth for D tokens, were they all unique. So runs that repeat nothing are those of
the law without repetition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import RectBivariateSpline

from carbs.analysis.laws.fitting import Form
from carbs.analysis.laws.forecast import Runs
from carbs.analysis.laws.power_forms import LOSS_FAMILY, loss_coefficients, loss_terms
from carbs.analysis.laws.rows import positive
from carbs.spaces import FloatArray

# R_D and R_N of Muennighoff et al. 2023, sec. 3.
REPETITION, EXCESS = 15.387756, 5.309743
# Deviation of the logs of both. Runs that are off by a ten-thousandth are exact.
_PRIOR, _LEAST_OBJECTIVE = 0.8, 0.5e-8
# A grid over the posterior: points each way, how many deviations it reaches, how often it is drawn
# closer, and below which part of its size.
_N_POINTS, _REACH, _N_CLOSER, _CLOSER = 9, 2.5, 5, 0.7
_N_FINE = 200
_MOST_LOG = 300.0


@dataclass(frozen=True)
class Repetition:
    """How soon repetition wears out.

    Attributes:
        best_params: ``log N_U = best_params[0] + best_params[1] log U``.
        tokens: R_D, in epochs: after so many more, another is worth 1/e of new data.
        params: R_N, in multiples of the parameters that are best for the unique tokens.
        tokens_interval, params_interval: to which runs that repeat tell them, at 90%; None where
            no run did, and they are as published.
    """

    best_params: tuple[float, float]
    tokens: float = REPETITION
    params: float = EXCESS
    tokens_interval: tuple[float, float] | None = None
    params_interval: tuple[float, float] | None = None

    def effective(
        self, n_params: FloatArray, n_tokens: FloatArray, unique_tokens: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """N and D of a run without repetition that is worth as much, in their common shape."""
        level, slope = self.best_params
        log_N, log_D = np.log(n_params), np.log(n_tokens)
        log_U = np.minimum(np.log(unique_tokens), log_D)
        of_unique, of_all = (
            _log_worth(log_N - level - slope * log_T, self.params)[0] for log_T in (log_U, log_D)
        )
        of_tokens = _log_worth(log_D - log_U, self.tokens)[0]
        return n_params * np.exp(of_unique - of_all), n_tokens * np.exp(of_tokens)

    def ends(self) -> Iterator[tuple[Repetition, Repetition]]:
        """For each decay that runs have told, those of its interval: the worse and the better."""
        for name in ("tokens", "params"):
            interval = getattr(self, f"{name}_interval")
            if interval is not None:
                low, high = interval
                yield replace(self, **{name: low}), replace(self, **{name: high})

    def said(self) -> str:
        """The decays with their intervals, in words; empty where no runs told them."""
        if self.tokens_interval is None or self.params_interval is None:
            return ""
        return (
            f"tokens that are repeated count less, R* = {self.tokens:.3g} epochs "
            "[{:.3g}, {:.3g}], ".format(*self.tokens_interval)
            + f"and parameters beyond what is best for the unique ones, R* = {self.params:.3g} "
            "[{:.3g}, {:.3g}]".format(*self.params_interval)
        )


def effective_tokens(
    n_tokens: ArrayLike, unique_tokens: ArrayLike, repetition: float = REPETITION
) -> FloatArray:
    """How many unique tokens a training on partly repeated ones is worth.

    ``U + U R* (1 - exp(-(D/U - 1)/R*))`` with R* = 15.39, as measured by Muennighoff et al. 2023,
    eq. 5: four epochs are worth nearly as much as new data, forty hardly more than twenty. A law
    that is told ``unique_tokens`` counts their second decay too, of parameters in excess.

    Args:
        n_tokens: D, that were trained on.
        unique_tokens: U, of these.
        repetition: R*, in epochs.
    """
    D, U = np.broadcast_arrays(*positive(n_tokens=n_tokens, unique_tokens=unique_tokens))
    return np.asarray(D * np.exp(_log_worth(np.log(D / U), repetition)[0]))


def best_params(A: float, B: float, alpha: float, beta: float) -> tuple[float, float]:
    """Log N_U at a token, and its slope: ``alpha A N^-alpha = beta B U^-beta``.

    Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", eq. 4.
    """
    return (math.log(alpha * A) - math.log(beta * B)) / alpha, beta / alpha


def fit_repetition(
    N: FloatArray, D: FloatArray, U: FloatArray, runs: Runs, is_known: bool = False
) -> tuple[Repetition, FloatArray, FloatArray]:
    """Both decays with their 90% intervals, and N and D that count, each ``(n,)``.

    The decays' posterior is their profile under the published form times what is usual. The noise
    of the runs is integrated out, so that n runs with an objective S have a likelihood of
    ``S^(-n/2)``.

    Args:
        N, D, U: parameters, tokens and unique ones of each run, ``(n,)``.
        runs: the same runs, as if all tokens were unique.
        is_known: the decays are as published.
    """
    form = _repeated_form(runs.x, np.log(np.minimum(U, D)) - runs.center[1])
    family = replace(LOSS_FAMILY, form=lambda x: form, bounds=_bounds)
    usual = family.with_usual(family.published, runs.y)
    theta = LOSS_FAMILY.fit(usual, runs).best()
    n = len(np.unique(runs.group))
    exact = _LEAST_OBJECTIVE * len(runs.y)

    def objective(log_R: FloatArray) -> FloatArray:
        # Twice, from where the first has led to: a descent may end in another valley.
        nonlocal theta
        least = np.full(len(log_R), np.inf)
        for _ in range(2):
            starts = np.concatenate([np.tile(theta, (len(log_R), 1)), log_R], axis=1)
            fits = family.fit(usual, runs, np.ones((len(log_R), len(N))), starts)
            theta = fits.best()[:5]
            least = np.minimum(least, fits.objective)
        return least

    def log_likelihood(log_R: FloatArray) -> FloatArray:
        return np.asarray(-0.5 * n * np.log(np.maximum(objective(log_R), exact)))

    def of_law() -> tuple[float, float]:
        return best_params(*loss_coefficients(theta[None], runs.center)[0, 1:].tolist())

    found = Repetition(of_law())
    if not is_known:
        found = _posterior(log_likelihood, found)
    objective(np.log([[found.tokens, found.params]]))
    found = replace(found, best_params=of_law())
    return found, *found.effective(N, D, U)


def _posterior(
    log_likelihood: Callable[[FloatArray], FloatArray], published: Repetition
) -> Repetition:
    """Medians and intervals, of the log likelihood ``(b,)`` of logs of R_D and R_N, ``(b, 2)``."""
    usual = np.log([published.tokens, published.params])
    middle, half = usual, np.full(2, _REACH * _PRIOR)
    for _ in range(_N_CLOSER):
        axes = [m + h * np.linspace(-1, 1, _N_POINTS) for m, h in zip(middle, half, strict=True)]
        grid = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        off = (grid - usual) / _PRIOR
        density = log_likelihood(grid) - 0.5 * np.square(off).sum(axis=1)
        density = (density - density.max()).reshape(_N_POINTS, _N_POINTS)
        share = np.exp(density) / np.exp(density).sum()
        along = [share.sum(axis=1), share.sum(axis=0)]
        middle = np.array([one @ axis for one, axis in zip(along, axes, strict=True)])
        spread = [
            math.sqrt(one @ (axis - at) ** 2)
            for one, axis, at in zip(along, axes, middle, strict=True)
        ]
        closer = np.maximum(_REACH * np.array(spread), 2 * half / (_N_POINTS - 1))
        if (closer > _CLOSER * half).all():
            break
        half = np.minimum(closer, half)
    fine = [np.linspace(axis[0], axis[-1], _N_FINE) for axis in axes]
    weight = np.exp(RectBivariateSpline(axes[0], axes[1], density)(fine[0], fine[1]))
    quantiles = []
    for i, at in enumerate(fine):
        below = np.cumsum(weight.sum(axis=1 - i))
        quantiles.append(np.exp(np.interp([0.05, 0.5, 0.95], below / below[-1], at)).tolist())
    (low, tokens, high), (fewest, params, most) = quantiles
    return replace(
        published,
        tokens=tokens,
        params=params,
        tokens_interval=(low, high),
        params_interval=(fewest, most),
    )


def _repeated_form(x: FloatArray, log_U: FloatArray) -> Form:
    """The law of runs that repeat: coefficients ``(theta, log R_D, log R_N)``.

    The derivatives by the decays are none, so that these stay where a descent starts.

    Args:
        x: centred logs of N and D, ``(n, 2)``.
        log_U: of the unique tokens, centred as D, ``(n,)``.
    """
    log_N, log_D = x.T

    def form(coefficients: FloatArray) -> tuple[FloatArray, FloatArray]:
        theta = coefficients[:, :5]
        R_D, R_N = np.exp(coefficients[:, 5:]).T[..., None]
        _, a, b, log_alpha, log_ratio = theta.T[..., None]
        alpha, ratio = np.exp(log_alpha), np.exp(log_ratio)
        level = (a - b - log_ratio) / alpha  # of log N_U, where log U is 0
        counts = np.broadcast_to(log_N, (len(theta), len(log_N)))
        by_theta = np.zeros((*counts.shape, 5))
        for log_T, sign in ((log_U, 1), (log_D, -1)):
            worth, slope = _log_worth(log_N - level - ratio * log_T, R_N)
            counts = counts + sign * worth
            of_best = np.zeros((*worth.shape, 5))
            of_best[..., 1], of_best[..., 2] = 1 / alpha, -1 / alpha
            of_best[..., 3], of_best[..., 4] = -level, ratio * log_T - 1 / alpha
            by_theta = by_theta - sign * slope[..., None] * of_best
        value, J = loss_terms(theta, counts, log_D + _log_worth(log_D - log_U, R_D)[0])
        J += (-alpha * J[..., 1])[..., None] * by_theta
        return value, np.concatenate([J, np.zeros((*value.shape, 2))], axis=2)

    return form


def _bounds(y: FloatArray) -> tuple[FloatArray, FloatArray]:
    lower, upper = LOSS_FAMILY.bounds(y)
    return np.append(lower, [-np.inf] * 2), np.append(upper, [np.inf] * 2)


def _log_worth(log_times: FloatArray, decay: FloatArray | float) -> tuple[FloatArray, FloatArray]:
    """Log of what an amount is worth over that amount, and its derivative.

    Args:
        log_times: log of the amount over what of it is fresh.
        decay: R, in multiples of what is fresh.
    """
    z = np.clip(log_times, 0, _MOST_LOG)
    lost = np.expm1(-np.expm1(z) / decay)
    worth = np.log1p(-decay * lost) - z
    slope = (1 + lost) * np.exp(-worth) - 1
    return np.asarray(worth), np.where(log_times > 0, slope, 0.0)
