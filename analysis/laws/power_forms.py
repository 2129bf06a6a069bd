"""The forms of the power laws of :mod:`carbs.analysis.laws.power`, and what is usual of them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy.special import expit

from carbs.analysis.laws.fitting import Form, stacked
from carbs.analysis.laws.forecast import Family, Member, Prior, Runs
from carbs.analysis.laws.usual import (
    COMPUTE_EXPONENT,
    EXPONENT,
    EXPONENT_RATIO,
    IRREDUCIBLE_SHARE,
    Usual,
)
from carbs.spaces import FloatArray

_LARGEST_EXPONENT = 3.0
# The irreducible loss is sought down to e^-10 of the least loss: nothing.
_DEEPEST = 10.0
# Of a published fit, and of the backtests' runs.
_PUBLISHED_DELTA = 1e-3
# How far a term is from a third of the least loss, at the middle of the runs.
_TERM = (math.log(0.3), 1.5)
# Logs of the parameters and tokens at which terms of language models are known better. Runs of
# fewer than the least are counted in millions, or are of something else.
_REFERENCE, _LEAST_SCALES = np.log([1e9, 2e10]), np.log([1e5, 1e6])


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


def loss_coefficients(theta: FloatArray, center: FloatArray) -> FloatArray:
    """E, A, B, alpha and beta, ``(b, 5)``, of theta ``(b, 5)``; center: of the logs, ``(2,)``."""
    e, a, b, log_alpha, log_ratio = theta.T
    alpha, beta = np.exp(log_alpha), np.exp(log_alpha + log_ratio)
    A, B = np.exp(a + alpha * center[0]), np.exp(b + beta * center[1])
    return np.stack([np.exp(e), A, B, alpha, beta], axis=1)


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
