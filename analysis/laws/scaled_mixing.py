"""Laws of the data mix over scale: many small runs, and some larger ones.

Notation
--------
w        mixture weights on the simplex, shape ``(k,)``
x        decades of N and of D from the size with the most runs, shape ``(2,)``
y        log loss, in the units of the law at that size
f        that law, with the covariance C of what is not known of it
k        covariance of its process on ``log(w + 0.003)``, one on average over the runs

``y(w, x) = f(w) + c(x) + a(x) f(w) + h(w, x) + noise``: another size has another level c; all
effects grow or shrink alike (a); and each drifts by itself (h). All three are normal, vanish at the
base and move along straight lines in x, but for a part of each size's level that is its own: with
covariances ``(10^2 + [x = x']) x x'``, ``0.6^2 x x' f f'`` and ``t^2 x x' k``. The drift t for a
decade and the noise, in that of the small runs, are averaged over a grid, each point by its
evidence and its prior. It is the autoregressive model of Kennedy and O'Hagan 2000, "Predicting the
output from a complex computer code when fast approximations are available", eq. 1, with a
difference that grows with the distance.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.linalg import solve_triangular

from carbs.analysis.laws.mixing import (
    FEATURES,
    GP_SCALE,
    LEAST_MIXTURES,
    MixingLaw,
    Mixtures,
    fit_mixing_law,
    likely_best,
)
from carbs.analysis.laws.power import ExtrapolationWarning
from carbs.analysis.laws.rows import positive, positive_rows
from carbs.analysis.laws.scales import ALIKE, distinct
from carbs.analysis.laws.shown import Shown
from carbs.spaces import FloatArray
from carbs.threads import on_one_thread

_LEVEL, _LEVEL_OF_SIZE, _GAIN = 10.0, 1.0, 0.6
# Medians and deviations of logs, and the grid.
_DRIFT, _NOISE = (0.15, 0.8), (2.5, 0.9)
_DRIFTS, _NOISES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.8), (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
_LEAST_SHARE = 1e-2
_FAR = 2.0  # decades of compute beyond the largest runs
_N_DESIGNS = 400  # draws of what more runs would measure
_DRAWS_FOR_A_RUN = 40
_SAME = 1e-6  # decades
_N_NAMED = 5  # sizes, in a sentence


@dataclass(frozen=True)
class ScaledMixingLaw(Shown):
    """Held-out loss over the simplex, at any size of model.

    Attributes:
        base: the law of the size with the most runs.
        sizes: n_params, n_tokens and n_runs, a row a size, the base first.
        fitted_to: in words.
        drift: how much the effects move for a decade of N or D, as a share of themselves.
    """

    base: MixingLaw
    sizes: pd.DataFrame
    fitted_to: str
    drift: float
    _beside: Beside = field(repr=False)

    def at(self, n_params: float, n_tokens: float) -> MixingLawAtScale:
        """The law at a size, of which runs may be known or not.

        The best mixture hardly needs runs at that size. The level of the loss does: without any it
        goes on in a straight line, and its interval is wide.

        Warns:
            ExtrapolationWarning: a hundred times more compute than the largest runs had.
        """
        N, D = (float(value) for value in positive(n_params=n_params, n_tokens=n_tokens))
        known = np.log10(self.sizes[["n_params", "n_tokens"]].to_numpy(dtype=float))
        beyond = math.log10(N) + math.log10(D) - float(known.sum(axis=1).max())
        if beyond > _FAR:
            warnings.warn(
                f"asked at {10**beyond:.3g} times the compute of the largest runs: how effects "
                "move so far is a guess. Measure some mixtures in between",
                ExtrapolationWarning,
                stacklevel=2,
            )
        here = np.log10([N, D])
        off = np.abs(known - here).max(axis=1)
        if off.min() * math.log(10) <= ALIKE:
            here = known[off.argmin()]
        return MixingLawAtScale(N, D, self._beside, here - known[0])

    def summary(self, level: float = 0.9) -> pd.DataFrame:
        """What five points more of each domain do to the loss, at the base and at the largest size.

        Returns:
            A row a domain: effect, low and high, in percent, then these at the largest size.
        """
        n_params, n_tokens = max(
            self.sizes[["n_params", "n_tokens"]].to_numpy(dtype=float).tolist(), key=math.prod
        )
        there = self.at(n_params, n_tokens).effects(level=level)
        return self.base.effects(level=level).merge(there, on="domain", suffixes=("", "_largest"))


class MixingLawAtScale(Mixtures):
    """Held-out loss over the simplex at one size of model.

    Attributes:
        base: the law of the size with the most runs, which tell where good mixtures lie.
        n_params, n_tokens: of this size.
    """

    def __init__(self, n_params: float, n_tokens: float, beside: Beside, x: FloatArray) -> None:
        self.base = beside.base
        self.n_params, self.n_tokens = n_params, n_tokens
        self.weights, self.loss = self.base.weights, self.base.loss
        self.log_center, self.log_scale = self.base.log_center, self.base.log_scale
        self.domains = self.base.domains
        self._beside, self._x = beside, x

    def mixtures_to_run(self, n: int, seed: int = 0) -> pd.DataFrame:
        """The mixtures whose losses at this size would tell most of which is the best.

        Each is the best of some of the functions that may be the law here.

        Returns:
            A row a mixture, a column a domain; fewer than n where these agree on the best.
        """
        W, rows = self._designed(n, np.random.default_rng(seed))
        return pd.DataFrame(W[rows], columns=list(self._names))

    def worth_of_runs(
        self, counts: Sequence[int] = (0, 1, 2, 4, 8, 16, 32), seed: int = 0
    ) -> pd.DataFrame:
        """How much better the mixture would be that is chosen after more runs at this size.

        The runs are of :meth:`mixtures_to_run`; what they would measure is drawn from the law, and
        chosen is then what is best by the law that knows them.

        Args:
            counts: of more runs.
            seed: of the draws.

        Returns:
            A row a count: n_runs, the loss to expect of what is chosen, and its gain in percent
            over what would be chosen now.
        """
        if not len(counts) or min(counts) < 0:
            raise ValueError(f"counts are numbers of runs, 0 or more, but are {list(counts)}")
        rng = np.random.default_rng(seed)
        W, design = self._designed(max(counts), rng)
        known, _ = self.base._moments(W)
        ns = np.unique([0, *counts])
        parts = self._beside.joint(self._x, W)
        mean = known + sum(share * part.mean for share, part in parts)
        reached = np.zeros(len(ns))
        for share, part in parts:
            for i, n in enumerate(ns):
                rows = design[:n]
                measured = part.covariance[np.ix_(rows, rows)] + part.noise * np.eye(len(rows))
                # What is measured moves what is known of all mixtures by this, times normal draws.
                root = np.linalg.cholesky(measured)
                moves = solve_triangular(root, part.covariance[rows], lower=True)
                drawn = rng.standard_normal((_N_DESIGNS // 2, len(rows))) @ moves
                drawn = np.concatenate([drawn, -drawn])
                reached[i] += share * float((mean + drawn).min(axis=1).mean())
        reached = np.minimum.accumulate(reached)
        gain = np.abs(np.expm1(self.log_scale * (reached - reached[0])))
        best = math.exp(self.log_center + self.log_scale * reached[0])
        table = pd.DataFrame({"n_runs": ns, "loss": best * (1 - gain), "gain": 100 * gain})
        return table.set_index("n_runs").loc[list(counts)].reset_index()

    def _designed(self, n: int, rng: np.random.Generator) -> tuple[FloatArray, np.ndarray]:
        """Mixtures, and which of them most functions that may be the law have their best at."""
        pool, y = self._pool(rng)
        W = pool[likely_best(y, rng)]
        best = self._draws(W, _DRAWS_FOR_A_RUN * max(n, 1), rng).argmin(axis=1)
        rows, times = np.unique(best, return_counts=True)
        return W, np.asarray(rows[np.argsort(-times, kind="stable")][:n])

    def _moments(self, W: FloatArray) -> tuple[FloatArray, FloatArray]:
        mean, variance = self._beside.moments(self._x, W)
        return self.base._moments(W)[0] + mean, np.sqrt(variance)

    def _draws(self, W: FloatArray, n_draws: int, rng: np.random.Generator) -> FloatArray:
        parts = self._beside.joint(self._x, W)
        counts = rng.multinomial(n_draws, [share for share, _ in parts])
        drawn = []
        for (_, part), n in zip(parts, counts, strict=True):
            variances, vectors = np.linalg.eigh(part.covariance)
            root = vectors * np.sqrt(np.maximum(variances, 0.0))
            drawn.append(part.mean + rng.standard_normal((n, len(W))) @ root.T)
        return np.asarray(self.base._moments(W)[0] + np.concatenate(drawn))


class Joint(NamedTuple):
    """Of what is beside f at mixtures: mean ``(m,)``, covariance ``(m, m)``; noise of a run."""

    mean: FloatArray
    covariance: FloatArray
    noise: float


class Beside:
    """What the runs of other sizes tell of what is beside f.

    Args:
        base: the law f.
        W, x: mixtures and sizes of the runs, ``(n, k)`` and ``(n, 2)``.
        y: of the runs, less f, ``(n,)``.
    """

    def __init__(self, base: MixingLaw, W: FloatArray, x: FloatArray, y: FloatArray) -> None:
        self.base = base
        self._W, self._x, self._y = W, x, y
        kernel, X = base.processes[0].kernel, base.processes[0].data()[0]
        self._unit = float((kernel.diagonal(X) - kernel.trend).mean())
        usual_noise = np.mean([process.noise for process in base.processes]) / GP_SCALE**2
        fixed, drifting = self._covariances(W, x)
        self._grid: list[tuple[float, float, float, FloatArray]] = []
        for drift, times in itertools.product(_DRIFTS, _NOISES):
            noise = float(times * usual_noise)
            root = np.linalg.cholesky(fixed + drift**2 * drifting + noise * np.eye(len(y)))
            whitened = solve_triangular(root, y, lower=True)
            density = -0.5 * float(whitened @ whitened) - float(np.log(root.diagonal()).sum())
            for value, (median, deviation) in ((drift, _DRIFT), (times, _NOISE)):
                density -= 0.5 * (math.log(value / median) / deviation) ** 2
            self._grid.append((density, drift, noise, np.asarray(root)))
        log_share = np.array([point[0] for point in self._grid])
        share = np.exp(log_share - log_share.max())
        kept = np.flatnonzero(share > _LEAST_SHARE * share.sum())
        share = share[kept] / share[kept].sum()
        self._grid = [(float(s), *self._grid[i][1:]) for s, i in zip(share, kept, strict=True)]

    @property
    def drift(self) -> float:
        """To be expected for a decade, as a share of the effects."""
        return sum(share * drift for share, drift, _, _ in self._grid)

    def moments(self, x: FloatArray, W: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean, and variance of a run, at mixtures of one size; each ``(m,)``."""
        fixed, drifting = self._covariances(self._W, self._x, W, x)
        own, own_drifting = self._variances(W, x)
        means, variances = [], []
        for _, drift, noise, root in self._grid:
            whitened = solve_triangular(root, fixed + drift**2 * drifting, lower=True)
            means.append(whitened.T @ solve_triangular(root, self._y, lower=True))
            left = own + drift**2 * own_drifting - np.einsum("nm,nm->m", whitened, whitened)
            variances.append(np.maximum(left, 0.0) + noise)
        share = np.array([point[0] for point in self._grid])
        mean = share @ np.array(means)
        return mean, share @ (np.array(variances) + np.square(np.array(means) - mean))

    def joint(self, x: FloatArray, W: FloatArray) -> list[tuple[float, Joint]]:
        """At mixtures of one size, for each point of the grid, with its share."""
        fixed, drifting = self._covariances(self._W, self._x, W, x)
        own, own_drifting = self._covariances(W, np.broadcast_to(x, (len(W), 2)))
        found = []
        for share, drift, noise, root in self._grid:
            whitened = solve_triangular(root, fixed + drift**2 * drifting, lower=True)
            mean = whitened.T @ solve_triangular(root, self._y, lower=True)
            covariance = own + drift**2 * own_drifting - whitened.T @ whitened
            found.append((share, Joint(mean, covariance, noise)))
        return found

    def _covariances(
        self,
        W: FloatArray,
        x: FloatArray,
        other: FloatArray | None = None,
        x_other: FloatArray | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """But for the drift, and that of a drift of one, ``(n, m)`` each."""
        other = W if other is None else other
        x_other = x if x_other is None else np.broadcast_to(x_other, (len(other), 2))
        f, f_other = self.base._moments(W)[0], self.base._moments(other)[0]
        process = self.base.processes[0]
        Z, Z_other = FEATURES[0](W), FEATURES[0](other)
        along = x @ x_other.T
        alike = np.abs(x[:, None] - x_other).max(axis=2) < _SAME
        level = along * (_LEVEL**2 + _LEVEL_OF_SIZE**2 * alike)
        gain = _GAIN**2 * along * np.outer(f, f_other)
        unknown = process.covariance(Z, Z_other) / GP_SCALE**2
        kernel = process.kernel
        drifting = kernel(kernel.unit(Z), kernel.unit(Z_other)) - kernel.trend
        return level + gain + unknown, along * drifting / self._unit

    def _variances(self, W: FloatArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The same of mixtures at one size with themselves, ``(m,)`` each."""
        f, along = self.base._moments(W)[0], float(x @ x)
        process = self.base.processes[0]
        kernel, Z = process.kernel, FEATURES[0](W)
        level = along * (_LEVEL**2 + _LEVEL_OF_SIZE**2)
        unknown = np.square(process.posterior(Z)[1] / GP_SCALE)
        drifting = kernel.diagonal(kernel.unit(Z)) - kernel.trend
        return level + _GAIN**2 * along * f**2 + unknown, along * drifting / self._unit


@on_one_thread
def fit_scaled_mixing_law(
    weights: ArrayLike | pd.DataFrame,
    loss: ArrayLike,
    n_params: ArrayLike,
    n_tokens: ArrayLike,
    seed: int = 0,
) -> ScaledMixingLaw:
    """Fit held-out loss as a function of the training mixture, over sizes of model.

    Args:
        weights: W, a mixture a row, shape ``(n, k)``; see :func:`fit_mixing_law`.
        loss: positive, shape ``(n,)``.
        n_params, n_tokens: of each run, positive, ``(n,)``. Sizes within a hundredth of each other
            are one. At one of them there are 8 runs or more, and at others one at least.
        seed: of the starts.

    Raises:
        ValueError: no size has 8 runs, or all runs are of one; what :func:`fit_mixing_law` refuses.
    """
    L, N, D = positive_rows(loss=loss, n_params=n_params, n_tokens=n_tokens)
    W = weights.to_numpy() if isinstance(weights, pd.DataFrame) else np.asarray(weights)
    if len(W) != len(L):
        raise ValueError(f"weights {W.shape} and loss {L.shape} must have equally many rows")
    means, at, _ = distinct(np.log(np.stack([N, D], axis=1)))
    counts = np.bincount(at)
    if len(counts) < 2:
        raise ValueError("all runs are of one size: fit_mixing_law is for these")
    if counts.max() < LEAST_MIXTURES:
        raise ValueError(
            f"a mixing law needs {LEAST_MIXTURES} mixtures at one size, but the {len(L)} runs are "
            f"of {len(counts)} sizes with {counts.max()} at most: run more at a small one"
        )
    order = np.lexsort([means.sum(axis=1), -counts])  # the most runs, and of these the cheapest
    place = np.argsort(order)[at]
    x = (means[order] - means[order[0]]) / math.log(10)
    is_base = place == 0
    chosen = weights[is_base] if isinstance(weights, pd.DataFrame) else W[is_base]
    base = fit_mixing_law(chosen, L[is_base], seed)
    others = base._read(weights)[~is_base]
    y = (np.log(L[~is_base]) - base.log_center) / base.log_scale
    beside = Beside(base, others, x[place[~is_base]], y - base._moments(others)[0])
    sizes = pd.DataFrame(np.exp(means[order]), columns=["n_params", "n_tokens"])
    sizes["n_runs"] = counts[order]
    told = "; ".join(
        f"{row.n_runs} runs of {row.n_params:.3g} parameters and {row.n_tokens:.3g} tokens"
        for row in sizes.head(_N_NAMED).itertuples()
    )
    return ScaledMixingLaw(
        base=base,
        sizes=sizes,
        fitted_to=told + f"; {len(sizes) - _N_NAMED} more sizes" * (len(sizes) > _N_NAMED),
        drift=beside.drift,
        _beside=beside,
    )
