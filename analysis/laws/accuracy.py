"""Accuracy as a function of the loss on the answers.

Notation
--------
L        mean negative log-likelihood of the correct answers, in nats, shape ``(n,)``
a        accuracy: share of questions answered correctly, shape ``(n,)``
chance, ceiling   accuracy of a model that knows nothing, and of one that knows all
m, s     the loss at half way, and over how many nats accuracy rises there
theta    ``(logit of (ceiling - chance) / (1 - chance), m, log s)``

``a(L) = chance + (ceiling - chance) / (1 + exp((L - m) / s))``: the second step of Grattafiori et
al. 2024 ("The Llama 3 Herd of Models", sec. 3.2.1) and of Bhagia et al. 2024 ("Establishing Task
Scaling Laws via Compute-Efficient Model Ladders"). The first is a law of the loss: predict the
loss of the large run with it, and its accuracy from that; :meth:`AccuracyLaw.along` does both.

Runs that have risen to 40% fit a ceiling of 41% as well as one of 99%. What a best fit and its
bootstrap make of that is chance, so theta has priors and is drawn from its posterior. A task can be
learned but for its wrong labels: the ceiling lies near one, with tails wide enough to be overruled
by a plateau. Rows of one run share a part of their error, which is estimated, and count for as much
less. The noise is integrated out.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import expit
from scipy.stats import t as student

from carbs.analysis.laws.backtest import Law
from carbs.analysis.laws.power import UndeterminedLawWarning
from carbs.analysis.laws.rows import check_level, runs_of_rows
from carbs.analysis.laws.shown import Shown
from carbs.spaces import FloatArray
from carbs.threads import on_one_thread

# Of the logit of the ceiling: 0.96 of what is above chance, in all likelihood above 0.75; Student's
# t with so many degrees of freedom.
_CEILING, _CEILING_TAIL = (3.2, 1.0), 4.0
# Of m and log s, as shares of the least loss: a task is learned somewhere on the way to no loss.
_MIDPOINT, _LOG_WIDTH = (0.75, 0.5), (math.log(0.2), 0.8)
# Noise of one accuracy, and how many rows that guess is worth; what rows of one run share of it.
_USUAL_NOISE, _USUAL_NOISE_WORTH, _USUAL_SHARED = 0.01, 2.0, 0.5
# Walkers, steps until they have forgotten where they began, and steps between two that are kept.
_N_WALKERS, _N_STEPS, _N_APART = 100, 120, 20
_HOPELESS = 12.0  # of log density
_TAIL = 5.0  # degrees of freedom of an error
_N_NOISE = 20  # draws of the noise for each of the law
# Slopes the wrong way, in their standard errors.
_WRONG_WAY, _SURELY_WRONG_WAY = 2.0, 4.0
_LEAST_RISE = 0.01
_GUESS = 0.7  # of the prior's width is left: a guess


@dataclass(frozen=True)
class AccuracyLaw(Shown):
    """``a(L) = chance + (ceiling - chance) / (1 + exp((L - midpoint) / width))``.

    Attributes:
        chance: accuracy of guessing.
        ceiling: accuracy that is approached where the loss vanishes.
        midpoint: loss at which accuracy is half way, in nats.
        width: over how many nats of loss it rises there.
        noise: deviation of one measured accuracy from the law.
        resamples: (ceiling, midpoint, width) drawn from the posterior, ``(n_resamples, 3)``.
        fitted_to: in words.
        doubts: what the runs do not tell, a sentence each.
        undetermined: the coefficients that are a guess, and why in a few words.
    """

    chance: float
    ceiling: float
    midpoint: float
    width: float
    noise: float
    resamples: FloatArray = field(repr=False)
    fitted_to: str
    doubts: tuple[str, ...] = ()
    undetermined: Mapping[str, str] = field(default_factory=dict)

    def predict(self, answer_loss: ArrayLike) -> FloatArray:
        """The accuracy to expect, in the shape of ``answer_loss``."""
        return np.asarray(self._drawn(np.asarray(answer_loss, dtype=float)).mean(axis=0))

    def interval(
        self, answer_loss: ArrayLike, level: float = 0.9, new_measurement: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Where a new run's accuracy is expected, or with ``new_measurement=False`` the law.

        Returns:
            (low, high), each in the shape of ``answer_loss``, within 0 and 1.
        """
        drawn = self._drawn(np.asarray(answer_loss, dtype=float))
        return self._quantiles(drawn, level, new_measurement)

    def along(self, loss_law: Law) -> AccuracyChain:
        """The accuracy over scale, with one interval for both steps.

        Args:
            loss_law: of the same answer loss, over parameters and tokens or over compute.
        """
        return AccuracyChain(self, loss_law)

    def summary(self, level: float = 0.9) -> pd.DataFrame:
        """One row a coefficient: estimate, low, high, and a note where the runs do not tell it."""
        check_level(level)
        low, high = np.quantile(self.resamples, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        names = ["ceiling", "midpoint", "width"]
        return pd.DataFrame(
            {
                "coefficient": names,
                "estimate": [self.ceiling, self.midpoint, self.width],
                "low": low,
                "high": high,
                "note": [self.undetermined.get(name, "") for name in names],
            }
        )

    def _drawn(self, L: FloatArray, paired: bool = False) -> FloatArray:
        """Accuracies of each resample, ``(b, *shape)``; ``paired`` where L has a row for each."""
        if not np.isfinite(L).all():
            raise ValueError("answer losses must be finite")
        n_extra = L.ndim - paired
        ceiling, midpoint, width = (
            self.resamples[:, i].reshape(-1, *[1] * n_extra) for i in range(3)
        )
        risen = expit(-(L - midpoint) / width)
        return np.asarray(self.chance + (ceiling - self.chance) * risen)

    def _quantiles(
        self, drawn: FloatArray, level: float, new_measurement: bool
    ) -> tuple[FloatArray, FloatArray]:
        check_level(level)
        if new_measurement:
            rng = np.random.default_rng(0)
            noise = student.rvs(_TAIL, size=(_N_NOISE, *drawn.shape), random_state=rng)
            drawn = (drawn + self.noise * noise).reshape(-1, *drawn.shape[1:])
        low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return np.clip(low, 0, 1), np.clip(high, 0, 1)


@dataclass(frozen=True)
class AccuracyChain:
    """From scale to the loss, and from the loss to the accuracy.

    Attributes:
        accuracy: over the answer loss.
        loss: over scale.
    """

    accuracy: AccuracyLaw
    loss: Law

    def predict(self, *scales: ArrayLike) -> FloatArray:
        """The accuracy to expect, in the common shape of the scales.

        Args:
            *scales: ``n_params, n_tokens``, or ``compute``, as the loss law has them.
        """
        return np.asarray(self._drawn(scales, new_measurement=False).mean(axis=0))

    def interval(
        self, *scales: ArrayLike, level: float = 0.9, new_measurement: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Where a new run's accuracy is expected, or with ``new_measurement=False`` the law.

        It holds what is not known of the loss and what is not known of the accuracy at a loss.

        Returns:
            (low, high), each in the common shape of the scales, within 0 and 1.
        """
        drawn = self._drawn(scales, new_measurement)
        return self.accuracy._quantiles(drawn, level, new_measurement)

    def _drawn(self, scales: tuple[ArrayLike, ...], new_measurement: bool) -> FloatArray:
        """Accuracies, ``(b, *shape)``: a loss for each resample of the accuracy's law."""
        expected = self.loss.predict(*scales)
        with warnings.catch_warnings():  # said once
            warnings.simplefilter("ignore")
            # Loss laws have Student's t with five degrees of freedom in the log of the loss.
            low, high = self.loss.interval(*scales, level=0.5, new_measurement=new_measurement)
        deviation = np.log(high / low) / 2 / student.ppf(0.75, _TAIL)
        # The same for all scales: a run that is worse than expected here is so there.
        z = _quasi_normal_t(len(self.accuracy.resamples)).reshape(-1, *[1] * expected.ndim)
        return self.accuracy._drawn(expected * np.exp(deviation * z), paired=True)


@on_one_thread
def fit_accuracy_law(
    answer_loss: ArrayLike,
    accuracy: ArrayLike,
    chance: float = 0.25,
    groups: ArrayLike | None = None,
    *,
    n_resamples: int = 400,
    seed: int = 0,
) -> AccuracyLaw:
    """Fit accuracy as a function of the loss on the correct answers.

    Args:
        answer_loss: mean negative log-likelihood of the correct answers, shape ``(n,)``, n >= 4.
        accuracy: from 0 to 1, shape ``(n,)``.
        chance: accuracy of guessing: one over the number of choices.
        groups: marks rows of one run, shape ``(n,)``: checkpoints, which share a part of their
            error. Each row is a run of its own by default.
        n_resamples: how many laws are drawn from the posterior.
        seed: of the draws.

    Raises:
        ValueError: too few rows, rows that are not finite or no accuracy (named), or an accuracy
            that falls as the loss falls.

    Warns:
        UndeterminedLawWarning: a task that has not risen above chance yet, or that may fall.
    """
    L, a = np.asarray(answer_loss, dtype=float), np.asarray(accuracy, dtype=float)
    if L.ndim != 1 or L.shape != a.shape:
        raise ValueError(f"answer_loss {L.shape} and accuracy {a.shape} must be of equal length")
    wrong = np.flatnonzero(~(np.isfinite(L) & (L > 0) & (a >= 0) & (a <= 1)))
    if len(wrong):
        raise ValueError(
            f"rows {wrong.tolist()} have a loss not finite and positive or no accuracy in 0 to 1"
        )
    if not 0 <= chance < 1:
        raise ValueError(f"chance is an accuracy below 1, but is {chance}")
    n = len(L)
    if n < 4 or len(np.unique(L)) < 3:
        raise ValueError(f"an accuracy law needs 4 runs of three or more losses, but there are {n}")
    group = np.unique(runs_of_rows(groups, n), return_inverse=True)[1].reshape(-1)
    doubts: list[str] = []
    undetermined: dict[str, str] = {}
    slope = _slope_in_errors(L, a, group)
    if slope > _SURELY_WRONG_WAY:
        raise ValueError(
            "accuracy falls as the loss falls: is it the loss on the correct answers of this task, "
            "and no error rate?"
        )
    if slope > _WRONG_WAY:
        doubts.append("accuracy seems to fall as the loss falls")
    rng = np.random.default_rng(seed)
    theta, best, noise = _posterior(L, a, chance, group, n_resamples, rng)
    drawn = _coefficients(theta, chance)
    ceiling, midpoint, width = (float(value) for value in _coefficients(best[None], chance)[0])
    risen = (drawn[:, 0] - chance) * expit(-(L.min() - drawn[:, 1]) / drawn[:, 2])
    if np.quantile(risen, 0.05) < max(_LEAST_RISE, noise):
        doubts.append(
            f"has not surely risen above chance ({chance:.3g}) yet: when and how fast it will is a "
            "guess"
        )
        undetermined |= dict.fromkeys(["midpoint", "width"], "not yet above chance")
    if np.subtract(*np.quantile(theta[:, 0], [0.75, 0.25])) > _GUESS * 1.35 * _CEILING[1]:
        undetermined["ceiling"] = "hardly more than the prior: near one"
    if doubts:
        warnings.warn("; ".join(doubts), UndeterminedLawWarning, stacklevel=3)
    n_runs = int(group.max()) + 1
    return AccuracyLaw(
        chance=chance,
        ceiling=ceiling,
        midpoint=midpoint,
        width=width,
        noise=noise,
        resamples=drawn,
        fitted_to="; ".join(
            [
                f"{n_runs} runs" + f" of {n} checkpoints" * (n_runs < n) + " with answer losses "
                f"from {L.min():.3g} to {L.max():.3g} and accuracies from {a.min():.3g} to "
                f"{a.max():.3g}, residual {100 * noise:.2g} points",
                *(f"{name}: {why}" for name, why in undetermined.items()),
                *doubts,
            ]
        ),
        doubts=tuple(doubts),
        undetermined=undetermined,
    )


def _posterior(
    L: FloatArray,
    a: FloatArray,
    chance: float,
    group: np.ndarray,
    n_resamples: int,
    rng: np.random.Generator,
) -> tuple[FloatArray, FloatArray, float]:
    """Theta ``(b, 3)``, its mode ``(3,)``, and the noise."""
    least = float(L.min())
    middle = np.array([_CEILING[0], _MIDPOINT[0] * least, _LOG_WIDTH[0] + math.log(least)])
    # Where most runs lie far above the least loss, so may the rise.
    above = float(np.median(L)) - least
    width = np.array([_CEILING[1], math.hypot(_MIDPOINT[1] * least, above), _LOG_WIDTH[1]])
    every = np.bincount(group)[group]

    def squares(theta: FloatArray, worth: FloatArray) -> FloatArray:
        rest = np.square(_accuracies(theta, L, chance) - a) @ worth
        return np.asarray(rest + _USUAL_NOISE_WORTH * _USUAL_NOISE**2)

    def density(theta: FloatArray, worth: FloatArray) -> FloatArray:
        z = (theta - middle) / width
        of_ceiling = -0.5 * (_CEILING_TAIL + 1) * np.log1p(z[:, 0] ** 2 / _CEILING_TAIL)
        prior = of_ceiling - 0.5 * np.square(z[:, 1:]).sum(axis=1)
        n_worth = worth.sum() + _USUAL_NOISE_WORTH
        return np.asarray(prior - 0.5 * n_worth * np.log(squares(theta, worth)))

    scattered = middle + 1.5 * width * rng.standard_normal((40 * _N_WALKERS, 3))
    # And evenly: a plateau lies where the prior hardly looks.
    half = len(scattered) // 2
    scattered[:half, 0] = rng.uniform(-4, 4, half)
    scattered[:half, 1] = rng.uniform(0, L.max(), half)
    scattered[:half, 2] = math.log(float(np.ptp(L))) + rng.uniform(-4, 1, half)
    kept = []
    # A row of a run of k rows is worth 1 / (1 + (k - 1) shared).
    worth = 1 / (1 + (every - 1) * _USUAL_SHARED)
    walkers = scattered[np.argsort(-density(scattered, worth))[:_N_WALKERS]]
    for _ in range(2):
        now = density(walkers, worth)
        for _ in range(_N_STEPS):
            _stretch(walkers, now, lambda theta: density(theta, worth), rng)  # noqa: B023
        # Who climbed another hill, far below the highest, would never come down.
        high = np.flatnonzero(now > now.max() - _HOPELESS)
        lost = now <= now.max() - _HOPELESS
        walkers[lost] = walkers[rng.choice(high, int(lost.sum()))]
        rest = _accuracies(walkers[[np.argmax(now)]], L, chance)[0] - a
        worth = 1 / (1 + (every - 1) * _shared(rest, group))
    now = density(walkers, worth)
    best = walkers[np.argmax(now)].copy()
    for _ in range(math.ceil(n_resamples / _N_WALKERS)):
        for _ in range(_N_APART):
            _stretch(walkers, now, lambda theta: density(theta, worth), rng)
        kept.append(walkers.copy())
    theta = np.concatenate(kept)[:n_resamples]
    noise = squares(theta, worth).mean() / (worth.sum() + _USUAL_NOISE_WORTH)
    return theta, best, math.sqrt(float(noise))


def _stretch(
    walkers: FloatArray,
    now: FloatArray,
    density: Callable[[FloatArray], FloatArray],
    rng: np.random.Generator,
) -> None:
    """One step of all walkers, in place (Goodman and Weare 2010, "Ensemble samplers with affine
    invariance": each half moves along lines to walkers of the other)."""
    half = len(walkers) // 2
    for moved, others in ((slice(0, half), slice(half, None)), (slice(half, None), slice(0, half))):
        there = walkers[others][rng.integers(half, size=half)]
        z = np.square(1 + rng.random(half)) / 2  # of density 1 / sqrt(z) over 1/2 to 2
        tried = there + z[:, None] * (walkers[moved] - there)
        reached = density(tried)
        gain = (walkers.shape[1] - 1) * np.log(z) + reached - now[moved]
        taken = np.log(rng.random(half)) < gain
        walkers[moved] = np.where(taken[:, None], tried, walkers[moved])
        now[moved] = np.where(taken, reached, now[moved])


def _accuracies(theta: FloatArray, L: FloatArray, chance: float) -> FloatArray:
    """Of coefficients ``(b, 3)`` at losses ``(n,)``: ``(b, n)``."""
    ceiling, midpoint, width = _coefficients(theta, chance).T[:, :, None]
    return np.asarray(chance + (ceiling - chance) * expit(-(L - midpoint) / width))


def _coefficients(theta: FloatArray, chance: float) -> FloatArray:
    ceiling = chance + (1 - chance) * expit(theta[:, 0])
    return np.stack([ceiling, theta[:, 1], np.exp(theta[:, 2])], axis=1)


def _shared(rest: FloatArray, group: np.ndarray) -> float:
    """Correlation of two rows of one run, from 0 to 1, drawn to the usual as by five pairs."""
    total = np.bincount(group, rest)
    pairs = float((np.bincount(group) * (np.bincount(group) - 1)).sum()) / 2
    variance = max(float(np.mean(rest**2)), 1e-12)
    products = float((total**2 - np.bincount(group, rest**2)).sum()) / 2
    return float(np.clip((products / variance + 5 * _USUAL_SHARED) / (pairs + 5), 0, 1))


def _slope_in_errors(L: FloatArray, a: FloatArray, group: np.ndarray) -> float:
    """The slope of accuracy over loss in its standard errors, rows of one run together."""
    x = L - L.mean()
    slope = float(x @ a / (x @ x))
    rest = a - a.mean() - slope * x
    n_runs = int(group.max()) + 1
    by_run = np.bincount(group, x * rest) if n_runs >= 4 else x * rest
    error = math.sqrt(float(by_run @ by_run)) / float(x @ x)
    n = len(by_run)
    return slope / max(error * math.sqrt(n / (n - 2)), 1e-12) * float(abs(slope * np.ptp(L)) > 1e-3)


def _quasi_normal_t(n: int) -> FloatArray:
    """Student's t at evenly spaced levels, in a fixed order that follows nothing, ``(n,)``."""
    levels = (np.random.default_rng(1).permutation(n) + 0.5) / n
    return np.asarray(student.ppf(levels, _TAIL))
