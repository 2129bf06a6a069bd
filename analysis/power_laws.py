"""Scaling laws of the loss: fits, prediction intervals.

Notation
--------
C        compute or cost of a run, shape ``(n,)``, in any unit
L        its loss, shape ``(n,)``
E        irreducible loss;  ``L(C) = E + k C^-g``
r        log residual, ``log L - log L(C)``

The fit minimises the sum over rows of the Huber loss of r (Hoffmann et al. 2022, "Training
Compute-Optimal Large Language Models", eq. 3). The law is fitted as ``logaddexp(e, a - g log C)``
with ``e = log E`` and ``a = log k``, so that E and k stay positive; derivatives are exact, starts
are many, and steps are Gauss-Newton's, which the narrow valley between E and g does not slow down.

A prediction interval holds where a new run's measurement is expected. It comes from a residual
bootstrap: the law is refitted to resampled residuals, and a resampled residual is added to each
refit's prediction. Residuals are widened by ``sqrt(n / (n - p))`` for the p coefficients that they
were fitted with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.optimize import least_squares
from scipy.special import expit

from carbs.space import FloatArray

_N_COEFFICIENTS = 3
_HUBER_DELTA = 1e-2
_LEAST_EXPONENT, _LARGEST_EXPONENT = 1e-3, 3.0
# The irreducible loss is sought down to e^-10 of the least loss: nothing.
_DEEPEST = 10.0


@dataclass(frozen=True)
class ComputeLaw:
    """``L(C) = E + k C^-g``.

    Attributes:
        E: irreducible loss, in the unit of the loss.
        k: in the unit of the loss, at C = 1.
        g: exponent, positive.
        compute, loss: what it was fitted to.
        resamples: coefficients (E, k, g) of the bootstrap, shape ``(n_resamples, 3)``.
        residuals: log residuals, widened, shape ``(n,)``.
    """

    E: float
    k: float
    g: float
    compute: FloatArray = field(repr=False)
    loss: FloatArray = field(repr=False)
    resamples: FloatArray = field(repr=False)
    residuals: FloatArray = field(repr=False)

    def predict(self, compute: ArrayLike) -> FloatArray:
        """The law's loss, same shape as ``compute``."""
        return np.asarray(self.E + self.k * np.asarray(compute, dtype=float) ** -self.g)

    def interval(
        self, compute: ArrayLike, level: float = 0.9, new_measurement: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Where a new run's loss is expected, or with ``new_measurement=False`` where the law is.

        Returns:
            (low, high), each in the shape of ``compute``.
        """
        C = np.asarray(compute, dtype=float)
        E, k, g = (self.resamples[:, i].reshape(-1, *[1] * C.ndim) for i in range(3))
        predictions = E + k * C**-g
        if new_measurement:
            draws = np.random.default_rng(0).choice(self.residuals, size=(20, len(predictions)))
            noise = np.exp(draws.reshape(20, len(predictions), *[1] * C.ndim))
            predictions = (predictions * noise).reshape(-1, *C.shape)
        tail = (1 - level) / 2
        low, high = np.quantile(predictions, [tail, 1 - tail], axis=0)
        return low, high

    def summary(self, level: float = 0.9) -> pd.DataFrame:
        """One row a coefficient: estimate and interval."""
        tail = (1 - level) / 2
        low, high = np.quantile(self.resamples, [tail, 1 - tail], axis=0)
        return pd.DataFrame(
            {
                "coefficient": ["E", "k", "g"],
                "estimate": [self.E, self.k, self.g],
                "low": low,
                "high": high,
            }
        )

    @cached_property
    def fitted_to(self) -> str:
        """In words: rows, range, residual."""
        spread = math.sqrt(float(np.mean(self.residuals**2)))
        return (
            f"{len(self.loss)} runs from {self.compute.min():.3g} to {self.compute.max():.3g}, "
            f"residual {100 * spread:.2g}% of the loss"
        )


def fit_compute_law(
    compute: ArrayLike, loss: ArrayLike, n_resamples: int = 200, seed: int = 0
) -> ComputeLaw:
    """Fit ``L(C) = E + k C^-g`` to runs that are each the best at their compute.

    Args:
        compute: positive, shape ``(n,)``, n >= 4, at least two distinct.
        loss: positive, shape ``(n,)``.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: too few rows, or rows that are not finite and positive; names them.
    """
    C, L = _checked(compute, loss)
    log_C, log_L = np.log(C), np.log(L)
    center = float(log_C.mean())
    x = log_C - center
    starts = [
        np.array([e, a, g])
        for e in np.log(L.min() * np.array([0.1, 0.5, 0.8, 0.95]))
        for a in np.log(np.maximum(np.median(L) - np.exp(e), 0.05 * L.min()))[None]
        for g in (0.05, 0.2, 0.5, 1.0)
    ]
    best = min((_descend(x, log_L, start) for start in starts), key=lambda fit: fit[1])[0]
    fitted = np.logaddexp(best[0], best[1] - best[2] * x)
    n = len(L)
    widening = math.sqrt(n / max(n - _N_COEFFICIENTS, 1))
    residuals = (log_L - fitted) * widening
    residuals = residuals - residuals.mean()
    rng = np.random.default_rng(seed)
    # From the fit and from a middling E: where the fit has E at zero, nothing draws it back.
    middling = np.array([math.log(0.5 * L.min()), math.log(0.5 * np.median(L)), 2 * best[2]])
    resamples = np.array(
        [
            min(
                (_descend(x, fitted + resampled, start) for start in (best, middling)),
                key=lambda fit: fit[1],
            )[0]
            for resampled in rng.choice(residuals, size=(n_resamples, n))
        ]
    )
    coefficients = np.stack([_coefficients(theta, center) for theta in [best, *resamples]])
    E, k, g = coefficients[0]
    return ComputeLaw(float(E), float(k), float(g), C, L, coefficients[1:], residuals)


def _coefficients(theta: FloatArray, center: float) -> FloatArray:
    e, a, g = theta
    return np.array([math.exp(e), math.exp(a + g * center), g])


def _checked(compute: ArrayLike, loss: ArrayLike) -> tuple[FloatArray, FloatArray]:
    C, L = np.asarray(compute, dtype=float), np.asarray(loss, dtype=float)
    if C.ndim != 1 or C.shape != L.shape:
        raise ValueError(f"compute {C.shape} and loss {L.shape} must be two lists of equal length")
    wrong = np.flatnonzero(~(np.isfinite(C) & np.isfinite(L) & (C > 0) & (L > 0)))
    if len(wrong):
        raise ValueError(f"rows {wrong.tolist()} have a compute or loss not finite and positive")
    if len(C) < _N_COEFFICIENTS + 1 or len(np.unique(C)) < 2:
        raise ValueError(
            f"a law with {_N_COEFFICIENTS} coefficients needs {_N_COEFFICIENTS + 1} runs at two or "
            f"more values of compute, but there are {len(C)}"
        )
    return C, L


def _descend(x: FloatArray, log_L: FloatArray, start: FloatArray) -> tuple[FloatArray, float]:
    """Gauss-Newton from one start: coefficients (e, a, g) and the objective."""

    def residuals(theta: FloatArray) -> FloatArray:
        e, a, g = theta
        return np.asarray(np.logaddexp(e, a - g * x) - log_L)

    def jacobian(theta: FloatArray) -> FloatArray:
        e, a, g = theta
        share = expit(e - (a - g * x))  # of E in the loss
        return np.stack([share, 1 - share, -(1 - share) * x], axis=1)

    upper = np.array([float(log_L.min()) + 1e-9, np.inf, _LARGEST_EXPONENT])
    lower = np.array([float(log_L.min()) - _DEEPEST, -np.inf, _LEAST_EXPONENT])
    start = np.clip(start, lower + 1e-6, upper - 1e-6)
    found = least_squares(
        residuals,
        start,
        jac=jacobian,
        bounds=(lower, upper),
        loss="huber",
        f_scale=_HUBER_DELTA,
        x_scale="jac",
        max_nfev=100,
    )
    return np.asarray(found.x), float(found.cost)
