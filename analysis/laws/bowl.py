"""One bowl that moves with scale, fitted to the runs near the optimum.

Notation
--------
scale    N and D of a run, say; runs within a hundredth of each other's are at one scale
x        logs of a scale, centred, with a leading 1 (or 1 for its family and 0 for each other one)
z        logs of a run's hyperparameters, centred, shape ``(h,)``
W        where the optimum lies, ``z* = W x``, shape ``(h, f + k)``: f levels, and k exponents
u        ``z - W x``, distance from the optimum
R, t     curvature and tilt of the bowl: ``y = c(x) + |R' u|^2 / 2 + t . u^3``, R lower triangular
c        log loss at the optimum: a plane in x and a Gaussian process beside it

The best run of a scale says little: around the optimum the loss is flat, so that its noise moves
the argmin over several grid points, and where nobody has run a grid there is one run at a scale, or
a few. What all runs share says much. Those near the optimum are therefore fitted at once, with a
level that is smooth over scale: with many runs at each scale it is as good as free, with one at
each it tells what the loss would be at the optimum. The bowl is steeper towards divergence than
towards timidity, hence its cubic part. Which runs are near is found by fits to ever nearer ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from carbs.analysis.laws.fitting import Form, descend
from carbs.analysis.laws.scales import distinct
from carbs.analysis.laws.usual import OPTIMUM_EXPONENT
from carbs.spaces import FloatArray

# Log losses above the optimum of the runs that are fitted, until it is known which are near.
_ZOOM = (0.3, 0.1, 0.04, 0.04)
_LEAST_RUNS = 3  # in a window, for each coefficient
# Deviation of the tilt, as a share of the curvature.
_TILT_PRIOR = 0.15
# Diagonal of R, and deviation of what is beside it.
_CURVE_PRIOR, _TURN_PRIOR = (0.12, 0.08), 0.1
_LEVEL_PRIOR = 1.5  # deviation of a log optimum from the middle of the runs near it
# The level c, in log loss: deviations of its plane, of a family's own slope, and of the process.
_INTERCEPT, _SLOPE, _OWN_SLOPE, _MISFIT = 1.0, 0.3, 0.1, 0.1
_LENGTH = math.log(10)  # of the process
_MOST_KNOTS, _LEAST_VARIANCE = 200, 1e-8
_RIDGE = 1e-2  # of the levels that a fit begins at
_WIDEST = 30.0


@dataclass(frozen=True)
class RunsAtScales:
    """Runs at scales.

    Attributes:
        z: shape ``(n, h)``, around ``z_center``; y: shape ``(n,)``.
        x: of the scales, shape ``(m, f + k)``, logs around ``x_center``; n_families: f.
        at: which scale a run is at, ``(n,)``.
        above: how far it lies above the optimum there, in log loss, ``(n,)``.
        root: the level of scale i is ``root[i] @ v``, v normal with deviation one; ``(m, r)``.
    """

    z: FloatArray
    x: FloatArray
    y: FloatArray
    at: np.ndarray
    above: FloatArray
    root: FloatArray
    z_center: FloatArray
    x_center: FloatArray
    n_families: int

    @classmethod
    def of(
        cls, z: FloatArray, log_scales: FloatArray, y: FloatArray, kind: np.ndarray | None = None
    ) -> RunsAtScales:
        """Runs with log hyperparameters z ``(n, h)`` and log losses y ``(n,)``.

        Args:
            log_scales: shape ``(n, k)``.
            kind: the family of each, 0 to f - 1, ``(n,)``.
        """
        kind = np.zeros(len(y), dtype=int) if kind is None else kind
        n_families = int(kind.max()) + 1
        means, at, first = distinct(log_scales, kind)
        x = np.column_stack([np.eye(n_families)[kind[first]], means])
        x_center = x[:, n_families:].mean(axis=0)
        x[:, n_families:] -= x_center
        y = y - np.median(y)
        above = y - pd.Series(y).groupby(at).min().to_numpy()[at]
        z_center = z[above <= np.median(above)].mean(axis=0)
        root = _level_root(x, n_families)
        runs = cls(z - z_center, x, y, at, above, root, z_center, x_center, n_families)
        for window in _ZOOM:
            bowl = fit_bowl(runs, runs.near(window))
            runs = replace(runs, above=runs.y - bowl.levels[runs.at])
        return runs

    @property
    def log_scales(self) -> FloatArray:
        return np.asarray(self.x[:, self.n_families :] + self.x_center)

    def tried(self, hyperparameter: int, own: np.ndarray) -> tuple[FloatArray, FloatArray]:
        """The least and the most of it at those scales, elsewhere of all runs; ``(m,)`` each."""
        values = self.z[:, hyperparameter]
        lowest, highest = (np.full(len(self.x), end) for end in (values.min(), values.max()))
        at_scale = pd.Series(values).groupby(self.at)
        lowest[own], highest[own] = at_scale.min()[own], at_scale.max()[own]
        return lowest, highest

    def near(self, window: float) -> np.ndarray:
        """Rows within the window, or where those are too few for the bowl the best, ``(n',)``."""
        h, k1 = self.z.shape[1], self.x.shape[1]
        least = _LEAST_RUNS * (n_coefficients(h, k1) + h)
        order = np.argsort(self.above, kind="stable")
        return np.sort(order[: max(least, int((self.above <= window).sum()))])


def n_coefficients(h: int, k1: int) -> int:
    """Of W, R and the plane of levels, for h hyperparameters over f + k = k1."""
    return h * k1 + h * (h + 1) // 2 + k1


def _level_root(x: FloatArray, n_families: int) -> FloatArray:
    """Root of the covariance of levels at scales ``(m, f + k)``, shape ``(m, r)``."""
    own, logs = x[:, :n_families], x[:, n_families:]
    plane = [_INTERCEPT * own, _SLOPE * logs]
    if n_families > 1:
        plane += [_OWN_SLOPE * own[:, [i]] * logs for i in range(n_families)]
    knots = np.unique(x, axis=0)
    knots = knots[np.linspace(0, len(knots) - 1, min(len(knots), _MOST_KNOTS)).astype(int)]

    def covariance(a: FloatArray, b: FloatArray) -> FloatArray:
        apart = np.square((a[:, None, n_families:] - b[:, n_families:]) / _LENGTH).sum(axis=2)
        alike = a[:, :n_families] @ b[:, :n_families].T
        return np.asarray(_MISFIT**2 * alike * np.exp(-0.5 * apart))

    variances, vectors = np.linalg.eigh(covariance(knots, knots))
    kept = variances > _LEAST_VARIANCE
    process = covariance(x, knots) @ vectors[:, kept] / np.sqrt(variances[kept])
    return np.column_stack([*plane, process])


@dataclass(frozen=True)
class Bowl:
    """A fit.

    Attributes:
        W: shape ``(h, f + k)``; resamples: of it, ``(b, h, f + k)``.
        shape: (R, t), as in theta.
        levels: of the scales, ``(m,)``.
        noise: of a run, in log loss.
        rows: that it was fitted to, with their weights and how high the bowl is there, ``(n',)``.
    """

    W: FloatArray
    resamples: FloatArray
    shape: FloatArray
    levels: FloatArray
    noise: float
    rows: np.ndarray
    weights: FloatArray
    heights: FloatArray


def fit_bowl(
    runs: RunsAtScales,
    rows: np.ndarray,
    n_resamples: int = 0,
    seed: int = 0,
) -> Bowl:
    """The bowl through these rows.

    Args:
        runs: all.
        rows: which of them, as ``runs.near(window)`` has them.
        n_resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    rng = np.random.default_rng(seed)
    z, y, at = runs.z[rows], runs.y[rows], runs.at[rows]
    h, k1 = z.shape[1], runs.x.shape[1]
    form, i_R, i_t, i_c, p = bowl_form(z, runs.x[at], runs.root[at])
    above = np.maximum(runs.above[rows], 0)
    weights = 1 / (1 + 3 * above / max(float(above.max()), 1e-12))
    lower, upper = np.full(p, -_WIDEST), np.full(p, _WIDEST)
    diagonal = i_R + np.array([i * (i + 1) // 2 + i for i in range(h)])
    lower[diagonal] = 1e-4
    lower[i_t:i_c] = upper[i_t:i_c] = 0.0
    start = np.zeros(p)
    # A parabola as wide as the runs that are there, on the levels that they lie above.
    start[diagonal] = np.sqrt(2 * max(above.max(), 1e-6)) / np.maximum(np.ptp(z, axis=0) / 2, 1e-3)
    level = runs.root[at]
    start[i_c:] = np.linalg.solve(
        level.T @ (weights[:, None] * level) + _RIDGE * np.eye(level.shape[1]),
        level.T @ (weights * (y - above)),
    )
    mean, width = np.zeros(p), np.full(p, np.inf)
    f = runs.n_families
    exponents = np.array([i * k1 + j for i in range(h) for j in range(f, k1)])
    width[:i_R] = _LEVEL_PRIOR
    width[exponents] = OPTIMUM_EXPONENT
    width[i_R:i_t] = _TURN_PRIOR
    mean[diagonal], width[diagonal] = _CURVE_PRIOR
    width[i_c:] = 1.0
    noise = max(float(np.median(above)) / 5, 1e-6)
    first = start[None]
    for tilted in (False, True, True):
        if tilted:
            lower[i_t:i_c], upper[i_t:i_c] = -_WIDEST, _WIDEST
            width[i_t:i_c] = _TILT_PRIOR * first[0, diagonal] ** 2
        first = descend(
            form,
            y,
            first,
            lower=lower,
            upper=upper,
            delta=1.5 * noise,
            weights=weights,
            prior=(mean, width / noise),
        ).theta
        rest = form(first)[0][0] - y
        noise = max(
            float(1.48 * np.sqrt(weights) @ np.abs(rest) / np.sqrt(weights).sum()) / 1.2, 1e-6
        )
    # Runs within scales, and the scales' say.
    counts = np.zeros((n_resamples, len(y)))
    scales, of = np.unique(at, return_inverse=True)
    for i in range(len(scales)):
        own = np.flatnonzero(of == i)
        counts[:, own] = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), n_resamples)
    counts *= (len(scales) * rng.dirichlet(np.ones(len(scales)), n_resamples))[:, of]
    # The prior's mean is drawn too: where only the prior knows an exponent, so is its interval.
    means = np.tile(mean, (n_resamples, 1))
    means[:, exponents] = OPTIMUM_EXPONENT * rng.standard_normal((n_resamples, len(exponents)))
    drawn = descend(
        form,
        y,
        np.tile(first, (n_resamples, 1)),
        lower=lower,
        upper=upper,
        delta=1.5 * noise,
        weights=weights * counts,
        prior=(means, width / noise),
        tolerance=1e-4,
        max_steps=60,
    ).theta
    levels = runs.root @ first[0, i_c:]
    return Bowl(
        W=first[0, :i_R].reshape(h, k1),
        resamples=drawn[:, :i_R].reshape(-1, h, k1),
        shape=first[0, i_R:i_c],
        levels=levels,
        noise=noise,
        rows=rows,
        weights=weights,
        heights=form(first)[0][0] - levels[at],
    )


def bowl_form(z: FloatArray, x: FloatArray, level: FloatArray) -> tuple[Form, int, int, int, int]:
    """The form for runs z ``(n, h)`` at scales x ``(n, k1)``, with levels ``level @ v``.

    Args:
        level: shape ``(n, r)``.

    Returns:
        The form of theta = (W, R, t, v); where R, t and v begin; the length of theta.
    """
    n, h = z.shape
    k1, r = x.shape[1], level.shape[1]
    pairs = [(i, j) for i in range(h) for j in range(i + 1)]
    i_R = h * k1
    i_t = i_R + len(pairs)
    i_c = i_t + h

    def form(theta: FloatArray) -> tuple[FloatArray, FloatArray]:
        b = len(theta)
        W = theta[:, :i_R].reshape(b, h, k1)
        R = np.zeros((b, h, h))
        for index, (i, j) in enumerate(pairs):
            R[:, i, j] = theta[:, i_R + index]
        t = theta[:, i_t:i_c]
        u = z - np.einsum("nk,bhk->bnh", x, W)
        v = u @ R
        values = (
            theta[:, i_c:] @ level.T + 0.5 * np.square(v).sum(-1) + (u**3 @ t[:, :, None])[..., 0]
        )
        J = np.empty((b, n, i_c + r))
        slope = v @ R.transpose(0, 2, 1) + 3 * t[:, None] * u**2  # dy/du
        J[..., :i_R] = -(slope[..., :, None] * x[:, None, :]).reshape(b, n, i_R)
        for index, (i, j) in enumerate(pairs):
            J[..., i_R + index] = v[..., j] * u[..., i]
        J[..., i_t:i_c] = u**3
        J[..., i_c:] = level
        return values, J

    return form, i_R, i_t, i_c, i_c + r
