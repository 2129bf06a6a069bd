"""Accuracy as a function of the loss on the answers.

Notation
--------
L        mean negative log-likelihood of the correct answers, in nats, shape ``(n,)``
a        accuracy: share of questions answered correctly, shape ``(n,)``
chance, ceiling   accuracy of a model that knows nothing, and of one that knows all
m, s     the loss at half way, and over how many nats accuracy rises there

``a(L) = chance + (ceiling - chance) / (1 + exp((L - m) / s))``: the second step of Grattafiori et
al. 2024 ("The Llama 3 Herd of Models", sec. 3.2.1) and of Bhagia et al. 2024 ("Establishing Task
Scaling Laws via Compute-Efficient Model Ladders"). The first is a law of the loss: predict the
loss of the large run with it, and its accuracy from that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit
from scipy.stats import t as student

from carbs.analysis.laws.fitting import Form, descend
from carbs.spaces import FloatArray

_DELTA = 0.02
# Mean and deviation of logit(ceiling), before the runs say anything.
_CEILING_PRIOR = (3.0, 2.0)


@dataclass(frozen=True)
class AccuracyLaw:
    """``a(L) = chance + (ceiling - chance) / (1 + exp((L - midpoint) / width))``.

    Attributes:
        chance: accuracy of guessing.
        ceiling: accuracy that is approached where the loss vanishes.
        midpoint: loss at which accuracy is half way, in nats.
        width: over how many nats of loss it rises there.
        noise: deviation of one measured accuracy from the law.
        resamples: (ceiling, midpoint, width) of the bootstrap, ``(n_resamples, 3)``.
        fitted_to: in words.
    """

    chance: float
    ceiling: float
    midpoint: float
    width: float
    noise: float
    resamples: FloatArray = field(repr=False)
    fitted_to: str

    def predict(self, answer_loss: ArrayLike) -> FloatArray:
        """The accuracy to expect, in the shape of ``answer_loss``."""
        L = np.asarray(answer_loss, dtype=float)
        risen = expit(-(L - self.midpoint) / self.width)
        return np.asarray(self.chance + (self.ceiling - self.chance) * risen)

    def interval(
        self, answer_loss: ArrayLike, level: float = 0.9, new_measurement: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Where a new run's accuracy is expected, or with ``new_measurement=False`` the law.

        Returns:
            (low, high), each in the shape of ``answer_loss``, within 0 and 1.
        """
        L = np.asarray(answer_loss, dtype=float)
        ceiling, midpoint, width = (
            self.resamples[:, i].reshape(-1, *[1] * L.ndim) for i in range(3)
        )
        drawn = self.chance + (ceiling - self.chance) * expit(-(L - midpoint) / width)
        if new_measurement:
            rng = np.random.default_rng(0)
            noise = student.rvs(5, size=(20, *drawn.shape), random_state=rng) * self.noise
            drawn = (drawn + noise).reshape(-1, *L.shape)
        low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return np.clip(low, 0, 1), np.clip(high, 0, 1)

    def summary(self, level: float = 0.9) -> pd.DataFrame:
        """One row a coefficient: estimate and interval."""
        low, high = np.quantile(self.resamples, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return pd.DataFrame(
            {
                "coefficient": ["ceiling", "midpoint", "width"],
                "estimate": [self.ceiling, self.midpoint, self.width],
                "low": low,
                "high": high,
            }
        )


def fit_accuracy_law(
    answer_loss: ArrayLike,
    accuracy: ArrayLike,
    chance: float = 0.25,
    *,
    n_resamples: int = 200,
    seed: int = 0,
) -> AccuracyLaw:
    """Fit accuracy as a function of the loss on the correct answers.

    Args:
        answer_loss: mean negative log-likelihood of the correct answers, shape ``(n,)``, n >= 4.
        accuracy: from 0 to 1, shape ``(n,)``.
        chance: accuracy of guessing: one over the number of choices.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: too few rows, or rows that are not finite or no accuracy; names them.
    """
    L, a = np.asarray(answer_loss, dtype=float), np.asarray(accuracy, dtype=float)
    if L.ndim != 1 or L.shape != a.shape:
        raise ValueError(f"answer_loss {L.shape} and accuracy {a.shape} must be of equal length")
    wrong = np.flatnonzero(~(np.isfinite(L) & (a >= 0) & (a <= 1)))
    if len(wrong):
        raise ValueError(f"rows {wrong.tolist()} have a loss not finite or no accuracy in 0 to 1")
    if not 0 <= chance < 1:
        raise ValueError(f"chance is an accuracy below 1, but is {chance}")
    n = len(L)
    if n < 4 or len(np.unique(L)) < 3:
        raise ValueError(f"an accuracy law needs 4 runs of three or more losses, but there are {n}")
    form = _accuracy_form(L, chance)
    spread = max(float(np.ptp(L)), 1e-6)
    starts = np.array(
        [
            [logit, middle, math.log(spread * share)]
            for logit in (0.0, 2.0, 4.0)
            for middle in np.quantile(L, [0.0, 0.3, 0.7])
            for share in (0.1, 0.3, 1.0)
        ]
    )
    lower = np.array([-6.0, L.min() - 5 * spread, math.log(spread / 100)])
    upper = np.array([8.0, L.max() + 5 * spread, math.log(spread * 10)])
    first = descend(form, a, starts, lower=lower, upper=upper, delta=_DELTA).best()
    rest = form(first[None])[0][0] - a
    noise = max(float(np.sqrt(np.mean(rest**2) * n / max(n - 3, 1))), 1e-4)
    # The loss of today's runs often tells nothing about the ceiling.
    mean = np.array([_CEILING_PRIOR[0], 0.0, 0.0])
    prior = mean, np.array([_CEILING_PRIOR[1], np.inf, np.inf]) / noise

    best = descend(
        form, a, np.vstack([starts, first]), lower=lower, upper=upper, delta=_DELTA, prior=prior
    ).best()
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), n_resamples).astype(float)
    # The prior's mean is drawn too: where only the prior knows the ceiling, so is its interval.
    means = mean + np.array([_CEILING_PRIOR[1], 0, 0]) * rng.standard_normal((n_resamples, 1))
    drawn = descend(
        form,
        a,
        np.tile(best, (n_resamples, 1)),
        lower=lower,
        upper=upper,
        delta=_DELTA,
        prior=(means, prior[1]),
        weights=counts,
    ).theta

    def coefficients(theta: FloatArray) -> FloatArray:
        ceiling = chance + (1 - chance) * expit(theta[:, 0])
        return np.stack([ceiling, theta[:, 1], np.exp(theta[:, 2])], axis=1)

    ceiling, midpoint, width = (float(value) for value in coefficients(best[None])[0])
    return AccuracyLaw(
        chance=chance,
        ceiling=ceiling,
        midpoint=midpoint,
        width=width,
        noise=noise,
        resamples=coefficients(drawn),
        fitted_to=(
            f"{n} runs with answer losses from {L.min():.3g} to {L.max():.3g}, "
            f"residual {100 * noise:.2g} points of accuracy"
        ),
    )


def _accuracy_form(L: FloatArray, chance: float) -> Form:
    def form(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        logit, midpoint, log_width = (theta[:, i : i + 1] for i in range(3))
        height, x = (1 - chance) * expit(logit), -(L - midpoint) / np.exp(log_width)
        risen = expit(x)
        slope = height * risen * (1 - risen)
        derivatives = [
            height * (1 - expit(logit)) * risen,
            slope / np.exp(log_width),
            -slope * x,
        ]
        return chance + height * risen, np.stack(derivatives, axis=-1)

    return form
