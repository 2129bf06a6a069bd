"""Laws of the data mix: held-out loss as a function of the training mixture.

Notation
--------
w        mixture weights on the simplex, shape ``(k,)``; W of n mixtures, ``(n, k)``
L        held-out loss of a model trained on each, shape ``(n,)``; y its standardised logarithm
S        number of bundles (skills) of the parametric part

The prediction is the average of three models of y that err differently:

* Gaussian processes on ``log(w + 0.003)`` and on ``sqrt(w)``: what the first doublings of a domain
  bring, and what its share brings. A linear scale sees neither, since most weights are near zero.
* Effective data: ``y = c - sum_s b_s log(q_s + sum_i a_si w_i^p_i)``. Each bundle of skills is
  learned from an effective amount of data, to which every domain contributes with its own worth a,
  and the loss falls as a power b of it (compare Ye et al. 2024, "Data Mixing Laws", and Liu et al.
  2024, "RegMix", who take exponentials and gradient-boosted trees).

Ranks of mixtures carry over from small models to large ones (Liu et al. 2024, sec. 4); levels do
not. ``rank_correlation`` measures it for runs at another size, and
:mod:`carbs.analysis.laws.scaled_mixing` learns from some of them how effects move.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from pandas.api.types import is_numeric_dtype
from scipy.stats import norm, spearmanr

from carbs.analysis.laws.fitting import Form, descend
from carbs.analysis.laws.rows import check_level
from carbs.gaussian_process import Data, GaussianProcess, fit_kernel
from carbs.spaces import FloatArray
from carbs.threads import on_one_thread

FEATURES: tuple[Callable[[FloatArray], FloatArray], ...] = (
    lambda W: np.log(W + 0.003),
    np.sqrt,
)
# The kernel's priors expect targets of deviation one; a tenth leaves the amplitude to the data.
GP_SCALE, _GP_NOISE_PRIOR = 0.1, (math.log(1e-5), 2.0)
_N_BUNDLES, _N_STARTS, _FLOOR = 6, 4, 1e-3
_BUNDLE_NOISE = 0.07  # deviation of y from the effective-data law that is expected
_TOLERATED_SUM = 0.02  # published weights are rounded
LEAST_MIXTURES = 8
_N_NAMED = 10  # rows, in an error
_N_EFFECTS = 400  # draws, for their intervals


@dataclass(frozen=True)
class BestMix:
    """The mixture with the least predicted loss.

    Attributes:
        weights: shape ``(k,)``.
        low, high: where the best weights lie, given what is known of the loss; each ``(k,)``.
        loss: predicted.
        loss_interval: of a new run.
        domains: names of the weights, or their positions where the law was given none.
    """

    weights: FloatArray
    low: FloatArray
    high: FloatArray
    loss: float
    loss_interval: tuple[float, float]
    domains: tuple[str, ...]

    def table(self, domains: Sequence[str] | None = None) -> pd.DataFrame:
        """One row a domain: weight, low, high.

        Args:
            domains: other names than the law's own, one a weight.
        """
        names = list(self.domains if domains is None else domains)
        return pd.DataFrame(
            {"domain": names, "weight": self.weights, "low": self.low, "high": self.high}
        )


class Mixtures(ABC):
    """Held-out loss over the simplex, by whatever law.

    Attributes:
        weights, loss: of the runs that tell where good mixtures lie, ``(n, k)`` and ``(n,)``.
        log_center, log_scale: of log loss: ``log L = log_center + log_scale y``.
        domains: names of the k columns, where the law was fitted to a frame. Frames to predict are
            then read by name, in whatever order their columns are.
    """

    weights: FloatArray
    loss: FloatArray
    log_center: float
    log_scale: float
    domains: tuple[str, ...] | None

    @abstractmethod
    def _moments(self, W: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean of y, and the deviation of a new measurement from it, each ``(m,)``."""

    @abstractmethod
    def _draws(self, W: FloatArray, n_draws: int, rng: np.random.Generator) -> FloatArray:
        """Functions that may be y, at mixtures ``(m, k)``: at least so many, ``(b, m)``."""

    def predict(self, weights: ArrayLike | pd.DataFrame) -> FloatArray:
        """The loss to expect of mixtures ``(m, k)``, shape ``(m,)``."""
        y, _ = self._moments(self._read(weights))
        return np.exp(self.log_center + self.log_scale * y)

    def interval(
        self, weights: ArrayLike | pd.DataFrame, level: float = 0.9
    ) -> tuple[FloatArray, FloatArray]:
        """Where the losses of new runs with mixtures ``(m, k)`` are expected: (low, high)."""
        check_level(level)
        y, deviation = self._moments(self._read(weights))
        half = norm.ppf(0.5 + level / 2) * deviation
        low, high = (np.exp(self.log_center + self.log_scale * z) for z in (y - half, y + half))
        return low, high

    def rank_correlation(self, weights: ArrayLike | pd.DataFrame, loss: ArrayLike) -> float:
        """Spearman's, of the prediction and losses measured at another size of model."""
        return float(spearmanr(self.predict(weights), np.asarray(loss, dtype=float)).statistic)

    def best_mix(self, level: float = 0.9, n_samples: int = 200, seed: int = 0) -> BestMix:
        """The mixture with the least predicted loss, and how far it is determined.

        The search begins at the measured mixtures and convex combinations of the better half, and
        closes in. The interval of each weight is that of the best mixtures of ``n_samples``
        functions that may be the law.
        """
        check_level(level)
        rng = np.random.default_rng(seed)
        pool, y = self._pool(rng)
        best = pool[np.argmin(y)]
        chosen = likely_best(y, rng)
        winners = chosen[np.argmin(self._draws(pool[chosen], n_samples, rng), axis=1)]
        drawn = np.concatenate([pool[winners], best[None]])
        low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        loss_low, loss_high = self.interval(best[None], level)
        return BestMix(
            weights=best,
            low=np.minimum(low, best),
            high=np.maximum(high, best),
            loss=float(self.predict(best[None])[0]),
            loss_interval=(float(loss_low[0]), float(loss_high[0])),
            domains=self._names,
        )

    def effects(
        self,
        weights: ArrayLike | pd.DataFrame | None = None,
        points: float = 0.05,
        level: float = 0.9,
        seed: int = 0,
    ) -> pd.DataFrame:
        """What more of each domain would do: a row a domain.

        Args:
            weights: of the mixture that is changed, ``(1, k)``; the mean of those measured by
                default.
            points: of the share that a domain gains, from all others in proportion.
            level: of the interval.
            seed: of the draws.

        Returns:
            domain, and the change of the loss in percent, with its interval (low, high).
        """
        check_level(level)
        if not 0 < points < 1:
            raise ValueError(f"points are a share between 0 and 1, as 0.05, but are {points}")
        start = self.weights.mean(axis=0) if weights is None else self._read(weights)[0]
        moved = (1 - points) * start + points * np.eye(len(start))
        W = np.concatenate([start[None], moved])
        y = self._moments(W)[0]
        draws = self._draws(W, _N_EFFECTS, np.random.default_rng(seed))
        change = self.log_scale * (y[1:] - y[0])
        drawn = self.log_scale * (draws[:, 1:] - draws[:, :1])
        low, high = np.quantile(drawn, [0.5 - level / 2, 0.5 + level / 2], axis=0)
        return pd.DataFrame(
            {
                "domain": self._names,
                "effect": 100 * np.expm1(change),
                "low": 100 * np.expm1(np.minimum(low, change)),
                "high": 100 * np.expm1(np.maximum(high, change)),
            }
        )

    @property
    def _names(self) -> tuple[str, ...]:
        return self.domains or tuple(str(i) for i in range(self.weights.shape[1]))

    def _pool(self, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
        """Mixtures, ever more of them good ones, ``(m, k)``; and their mean y, ``(m,)``."""
        good = self.weights[np.argsort(self.loss)[: max(len(self.loss) // 2, 2)]]
        blends = rng.dirichlet(np.full(len(good), 0.03), size=2000) @ good
        pool = np.concatenate([self.weights, blends])
        y, _ = self._moments(pool)
        for spread in (0.5, 0.3, 0.2, 0.1, 0.05, 0.02):
            top = pool[np.argsort(y)[:100]]
            steps = top[rng.integers(len(top), size=1000)]
            steps = steps * np.exp(spread * rng.standard_normal(steps.shape))
            steps[rng.random(steps.shape) < 0.1 * spread] = 0.0
            steps = steps[steps.sum(axis=1) > 0]
            steps /= steps.sum(axis=1, keepdims=True)
            pool = np.concatenate([pool, steps])
            y = np.concatenate([y, self._moments(steps)[0]])
        return pool, y

    def _read(self, weights: ArrayLike | pd.DataFrame) -> FloatArray:
        """Mixtures ``(m, k)`` with the domains in the law's order."""
        if isinstance(weights, pd.DataFrame) and self.domains is not None:
            names = [str(name) for name in weights.columns]
            missing = [name for name in self.domains if name not in names]
            unknown = [name for name in names if name not in self.domains]
            if missing or unknown or len(set(names)) < len(names):
                said = [f"lack {', '.join(missing)}"] * bool(missing)
                said += [f"have {', '.join(unknown)}, unknown to the law"] * bool(unknown)
                said += ["name a domain twice"] * (len(set(names)) < len(names))
                raise ValueError(
                    f"the mixtures {' and '.join(said)}; it was fitted to {', '.join(self.domains)}"
                )
            weights = weights.set_axis(names, axis=1)[list(self.domains)]
        return _mixtures(weights, self.weights.shape[1])


@dataclass(frozen=True)
class MixingLaw(Mixtures):
    """Held-out loss over the simplex.

    Attributes:
        weights, loss: what it was fitted to, ``(n, k)`` and ``(n,)``.
        log_center, log_scale: of log loss: ``log L = log_center + log_scale y``.
        processes: a Gaussian process on each of the features.
        bundles: theta of the effective-data law, a row a start, ``(b, p)``.
        domains: names of the k columns, where the law was fitted to a frame. Frames to predict are
            then read by name, in whatever order their columns are.
    """

    weights: FloatArray = field(repr=False)
    loss: FloatArray = field(repr=False)
    log_center: float
    log_scale: float
    processes: tuple[GaussianProcess, ...] = field(repr=False)
    bundles: FloatArray = field(repr=False)
    domains: tuple[str, ...] | None = None

    def _moments(self, W: FloatArray) -> tuple[FloatArray, FloatArray]:
        means, variances = [], []
        for gp, features in zip(self.processes, FEATURES, strict=True):
            mean, deviation = gp.posterior(features(W))
            means.append(mean[:, 0] / GP_SCALE)
            variances.append((deviation**2 + gp.noise) / GP_SCALE**2)
        means.append(_bundle_form(W)(self.bundles)[0].mean(axis=0))
        # The parametric part counts half, as one of two ways to see it.
        shares = np.array([0.25, 0.25, 0.5])
        middle = shares @ np.array(means)
        between = shares @ np.square(np.array(means) - middle)
        return middle, np.sqrt(np.mean(variances, axis=0) + between)

    def _draws(self, W: FloatArray, n_draws: int, rng: np.random.Generator) -> FloatArray:
        drawn = [
            gp.sample(features(W), n_draws, rng) + gp.posterior(features(W))[0][:, 0]
            for gp, features in zip(self.processes, FEATURES, strict=True)
        ]
        return np.concatenate(drawn) / GP_SCALE


def likely_best(y: FloatArray, rng: np.random.Generator) -> np.ndarray:
    """Where a drawn function may have its best: the likelier candidates, and some of all kinds."""
    likely = np.argsort(y)
    return np.concatenate([likely[:300], rng.choice(likely[300:], 300, replace=False)])


@on_one_thread
def fit_mixing_law(weights: ArrayLike | pd.DataFrame, loss: ArrayLike, seed: int = 0) -> MixingLaw:
    """Fit held-out loss as a function of the training mixture.

    Args:
        weights: W, a mixture a row, shape ``(n, k)``; rows sum to 1 up to rounding. The columns of
            a frame name the domains, for what is predicted and for :meth:`MixingLaw.best_mix`.
        loss: positive, shape ``(n,)``, n >= 8.
        seed: of the starts.

    Raises:
        ValueError: too few rows, or rows that are no mixture or no loss; names them.
    """
    domains = None
    if isinstance(weights, pd.DataFrame):
        domains = tuple(str(name) for name in weights.columns)
        other = [str(n) for n, kind in weights.dtypes.items() if not is_numeric_dtype(kind)]
        if other or len(set(domains)) < len(domains):
            raise ValueError(
                "the columns of a frame of mixtures are its domains, each once and of numbers, but "
                f"{', '.join(other or domains)} are not: choose those that are"
            )
    W = _mixtures(weights)
    L = np.asarray(loss, dtype=float)
    if L.shape != (len(W),):
        raise ValueError(f"weights {W.shape} and loss {L.shape} must have equally many rows")
    wrong = np.flatnonzero(~(np.isfinite(L) & (L > 0)))
    if len(wrong):
        raise ValueError(f"rows {wrong.tolist()} have a loss not finite and positive")
    if len(W) < LEAST_MIXTURES:
        raise ValueError(f"a mixing law needs {LEAST_MIXTURES} mixtures, but there are {len(W)}")
    log_L = np.log(L)
    center, scale = float(log_L.mean()), max(float(log_L.std()), 1e-9)
    y = (log_L - center) / scale
    processes = []
    for features in FEATURES:
        data = Data.pooled(features(W), GP_SCALE * y[:, None])
        processes.append(GaussianProcess(fit_kernel(data, noise_prior=_GP_NOISE_PRIOR), data))
    return MixingLaw(W, L, center, scale, tuple(processes), _fit_bundles(W, y, seed), domains)


def _fit_bundles(W: FloatArray, y: FloatArray, seed: int) -> FloatArray:
    """Theta of the effective-data law from a few starts, ``(b, p)``."""
    S, k = _N_BUNDLES, W.shape[1]
    sizes = S * k, k, S, S, 1  # log a, logit p, b, log q, c
    mean = np.repeat([-1.0, 1.0, 0.0, -2.0, 0.0], sizes)
    deviation = np.repeat([1.5, 1.0, 2.0, 1.5, np.inf], sizes) / _BUNDLE_NOISE
    rng = np.random.default_rng(seed)
    jitter = np.repeat([0.5, 0.1, 0.0, 0.3, 0.0], sizes)
    starts = mean + jitter * rng.standard_normal((_N_STARTS, len(mean)))
    b = slice(S * k + k, S * k + k + S)
    starts[:, b] = 2.7 / S * np.exp(0.3 * rng.standard_normal((_N_STARTS, S)))
    bound = np.full(len(mean), 30.0)
    return descend(
        _bundle_form(W),
        y,
        starts,
        lower=-bound,
        upper=bound,
        delta=3 * _BUNDLE_NOISE,
        prior=(mean, deviation),
        tolerance=1e-4,
        max_steps=40,
    ).theta


def _bundle_form(W: FloatArray) -> Form:
    n, k = W.shape
    S = _N_BUNDLES
    log_w = np.log((W + _FLOOR) / (1 + k * _FLOOR))
    i_p, i_b, i_q, i_c = np.cumsum([S * k, k, S, S])

    def form(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        count = len(theta)
        a = np.exp(theta[:, :i_p]).reshape(count, S, k)
        p = 1 / (1 + np.exp(-theta[:, i_p:i_b]))
        b, q = theta[:, i_b:i_q], np.exp(theta[:, i_q:i_c])
        powers = np.exp(p[:, None] * log_w)
        effective = powers @ a.transpose(0, 2, 1) + q[:, None]
        values = theta[:, i_c:] - np.einsum("bs,bns->bn", b, np.log(effective))
        J = np.empty((count, n, i_c + 1))
        slope = b[:, None] / effective
        per_domain = -slope[..., None] * a[:, None] * powers[:, :, None]
        J[..., :i_p] = per_domain.reshape(count, n, i_p)
        J[..., i_p:i_b] = per_domain.sum(axis=2) * log_w * (p * (1 - p))[:, None]
        J[..., i_b:i_q] = -np.log(effective)
        J[..., i_q:i_c] = -slope * q[:, None]
        J[..., i_c] = 1
        return values, J

    return form


def _mixtures(weights: ArrayLike | pd.DataFrame, k: int | None = None) -> FloatArray:
    """Rows that sum to one exactly, ``(n, k)``."""
    if isinstance(weights, str):
        raise ValueError(f"mixtures are rows of weights, not the text {weights!r}")
    W = np.asarray(weights, dtype=float)
    if W.ndim != 2 or W.shape[1] < 2 or (k is not None and W.shape[1] != k):
        raise ValueError(f"mixtures are rows of {k or 'two or more'} weights, not {W.shape}")
    with np.errstate(invalid="ignore"):
        sums = W.sum(axis=1)
        right = np.isfinite(W).all(axis=1) & (W >= 0).all(axis=1)
        right &= np.abs(sums - 1) <= _TOLERATED_SUM
    if not right.all():
        rows = np.flatnonzero(~right)
        if (np.abs(sums - 100) <= 100 * _TOLERATED_SUM).all():
            raise ValueError(
                "the weights of all rows sum to 100: divide them by 100, they are shares"
            )
        named = ", ".join(map(str, rows[:_N_NAMED])) + f", ... ({len(rows)} of {len(W)})" * (
            len(rows) > _N_NAMED
        )
        raise ValueError(
            f"rows [{named}] are no mixtures: weights are 0 or more and sum to 1, but the first of "
            f"them sums to {sums[rows[0]]:.4g}"
        )
    return np.asarray(W / sums[:, None])
