"""Exact Gaussian processes: the kernel, its fit, and a posterior that grows point by point.

Notation
--------
Z        basic points, shape ``(n, d)``
Y        standardised targets, shape ``(n, m)``: m functions with the same covariance
K        prior covariance plus noise, ``(n, n)``; ``L`` its Cholesky factor
k(z, z') = a Matern-5/2 (lengthscale a dimension) + t (sum_i w_i z_i z'_i + 1)
         + b sum_i w_i z_i^2 z'_i^2, after z is turned to its axes and scaled to a unit box
w        share of a dimension in its parameter: 1, or 1/n of the n shares of a mixture
s        earlier sweeps; where there are any, a row of Z ends with s more coordinates, of which the
         one of the run's own sweep is 1 and the others are 0; all are 0 in the new sweep

The linear part is a straight line on log parameters, with unknown level and slopes (of variances t
and w t, with t = 1) integrated out: cost laws are nearly log-linear, and so is the distance of a
loss from its irreducible level. Beyond the data the process therefore continues the trend, with an
uncertainty that grows, where a stationary one would fall back to its prior. The shares of a mixture
have the slope of one parameter between them: with one each, their many slopes would take up what a
few runs say.

The last part, where b is not zero, is a bowl in each dimension by itself, of unknown curvature: a
loss mostly has one, hyperparameters mostly hardly interact, and so a few runs along each of many
say what a process of all at once would need very many for.

Between sweeps all of the covariance but the level's (earlier sweeps come with theirs adjusted) is
multiplied by a correlation, ``exp(-theta_i)`` between the new one and the i-th earlier one,
``exp(-theta_i - theta_j)`` between two earlier ones. With ``theta_i`` near zero the earlier sweep
is as good as more runs of the new one; with a large one it says nothing.

The kernel's parameters are at their posterior mode: marginal likelihood (Rasmussen and Williams
2006, "Gaussian Processes for Machine Learning", eqs. 2.30 and 5.9) times priors, climbed by L-BFGS.
It is the objective of gpytorch's ``ExactMarginalLogLikelihood`` (a test compares them), evaluated
here because it is nearly all of what a suggestion costs: at 100 points in 7 dimensions an
evaluation with its gradient takes 3.6 ms through gpytorch's modules and autograd, and 0.3 ms here
(``benchmarks/latency.py --fit``).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.linalg.blas import dtrsm
from scipy.linalg.lapack import dpotrf, dpotri, dpotrs

from carbs.spaces import FloatArray

logger = logging.getLogger(__name__)

_MAX_FIT_STEPS = 75
_LEAST_NOISE = 1e-6
# Prior of theta: mean and deviation of its logarithm.
_DISTRUST_PRIOR = (-3.0, 1.5)
_TREND = 1.0
# Deviation of the logarithm of a lengthscale.
_LENGTHSCALE_PRIOR = 0.8
# In the unit box. Far shorter ones would leave nothing of distances but their rounding.
_LENGTHSCALES = (1e-2, 1e3)
_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Kernel:
    """The covariance function, its parameters, the noise, and the unit of its inputs.

    Attributes:
        lengthscales: of the Matern part, shape ``(d,)``.
        outputscale: variance of the Matern part.
        trend: t, variance of the level, and of a parameter's slope, of the linear part.
        curvature: b, variance of a parameter's curvature.
        shares: w, of both in each dimension, shape ``(d,)``.
        noise: variance of one measurement around the function.
        axes: along which points are compared, the columns of ``(d, d)``.
        middle, width: a basic point is scaled to ``(z axes - middle) / width``, both ``(d,)``.
        distrust: theta, for each earlier sweep, shape ``(s,)``.
    """

    lengthscales: FloatArray
    outputscale: float
    trend: float
    curvature: float
    shares: FloatArray
    noise: float
    axes: FloatArray
    middle: FloatArray
    width: FloatArray
    distrust: FloatArray

    @classmethod
    def likely(
        cls,
        Z: FloatArray,
        n_sweeps: int = 0,
        shares: FloatArray | None = None,
        curvature: float = 0.0,
        axes: FloatArray | None = None,
    ) -> Kernel:
        """What the priors expect, scaled to the points ``(n, d + s)``.

        Args:
            Z: the points.
            n_sweeps: s.
            shares: of each dimension in its parameter, ``(d,)``; one by default.
            curvature: b.
            axes: of the kernel; those of the basic space by default.
        """
        axes = np.eye(Z.shape[1] - n_sweeps) if axes is None else axes
        Z = Z[:, : len(axes)] @ axes
        lowest, highest = Z.min(axis=0), Z.max(axis=0)
        # At least one unit: a dimension that has hardly varied must not look wild.
        width = np.maximum(highest - lowest, 1.0)
        lengthscales = np.full(Z.shape[1], 0.5 * math.sqrt(Z.shape[1]))
        distrust = np.full(n_sweeps, math.exp(_DISTRUST_PRIOR[0]))
        shares = np.ones(Z.shape[1]) if shares is None else shares
        middle = (lowest + highest) / 2
        return cls(
            lengthscales, 0.7, _TREND, curvature, shares, 1e-2, axes, middle, width, distrust
        )

    def refitted_to(self, Z: FloatArray) -> Kernel:
        """The same function of the distance, in the unit box of other points ``(n, d + s)``."""
        box = Kernel.likely(Z, len(self.distrust), axes=self.axes)
        lengthscales = np.clip(self.lengthscales * self.width / box.width, *_LENGTHSCALES)
        return replace(self, lengthscales=lengthscales, middle=box.middle, width=box.width)

    def unit(self, Z: FloatArray) -> FloatArray:
        """Basic points in the unit box of those that the kernel was fitted to, ``(n, d + s)``.

        Points ``(n, d)``, which name no sweep, belong to the new one.
        """
        d = len(self.middle)
        X = np.zeros((len(Z), d + len(self.distrust)))
        X[:, :d] = (Z[:, :d] @ self.axes - self.middle) / self.width
        if Z.shape[1] > d:
            X[:, d:] = Z[:, d:]
        return X

    def __call__(self, X: FloatArray, other: FloatArray) -> FloatArray:
        """Covariance ``(n, q)`` of unit points ``(n, d + s)`` and ``(q, d + s)``."""
        d = len(self.middle)
        sweeps, others = X[:, d:], other[:, d:]
        X, other = X[:, :d], other[:, :d]
        covariance = _matern(_distances(X / self.lengthscales, other / self.lengthscales))
        covariance *= self.outputscale
        covariance += (self.trend * self.shares * X) @ other.T
        if self.curvature:
            covariance += (self.curvature * self.shares * np.square(X)) @ np.square(other).T
        if len(self.distrust):
            covariance *= _correlation(sweeps, others, self.distrust)
        covariance += self.trend
        return covariance

    def diagonal(self, X: FloatArray) -> FloatArray:
        """Variances ``(n,)`` at unit points ``(n, d + s)``."""
        squares = np.square(X[:, : len(self.middle)])
        lines = self.trend * (squares @ self.shares + 1)
        bowls = self.curvature * np.square(squares) @ self.shares
        return np.asarray(self.outputscale + lines + bowls)


def _distances(X: FloatArray, other: FloatArray) -> FloatArray:
    """``sqrt(5)`` times the distances of scaled points, shape ``(n, q)``."""
    r: FloatArray = X @ other.T
    r *= -10
    r += 5 * np.square(X).sum(axis=1)[:, None]
    r += 5 * np.square(other).sum(axis=1)
    np.maximum(r, 0.0, out=r)
    return np.sqrt(r, out=r)


def _correlation(sweeps: FloatArray, others: FloatArray, distrust: FloatArray) -> FloatArray:
    """Between runs of these sweeps, ``(n, s)`` and ``(q, s)``: shape ``(n, q)``."""
    apart = (sweeps @ distrust)[:, None] + others @ distrust - 2 * (sweeps * distrust) @ others.T
    return np.exp(-apart)


def _matern(r: FloatArray) -> FloatArray:
    """Matern-5/2 correlation at ``r = sqrt(5) |distance|``."""
    correlation = r / 3
    correlation += 1
    correlation *= r
    correlation += 1
    correlation *= np.exp(-r)
    return correlation


@dataclass(frozen=True)
class Data:
    """Distinct points with the mean of what was measured there.

    Attributes:
        Z: shape ``(n, d + s)``.
        Y: means of the targets, shape ``(n, m)``.
        counts: how many measurements each mean is of, shape ``(n,)``.
        scatter: sum of squares of the measurements around their means, shape ``(m,)``.
        extra: variance of each mean besides the noise, shape ``(n,)``.
        n_sweeps: s.
    """

    Z: FloatArray
    Y: FloatArray
    counts: FloatArray
    scatter: FloatArray
    extra: FloatArray
    n_sweeps: int = 0

    @classmethod
    def pooled(
        cls, Z: FloatArray, Y: FloatArray, extra: FloatArray | None = None, n_sweeps: int = 0
    ) -> Data:
        """Measurements ``Y`` ``(n, m)`` at points that may repeat, in order of appearance."""
        extra = np.zeros(len(Z)) if extra is None else extra
        _, first, group = np.unique(Z, axis=0, return_index=True, return_inverse=True)
        if len(first) == len(Z):
            return cls(Z, Y, np.ones(len(Z)), np.zeros(Y.shape[1]), extra, n_sweeps)
        order = np.argsort(first)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        group = rank[group.reshape(-1)]
        counts = np.bincount(group).astype(float)

        def mean(x: FloatArray) -> FloatArray:
            return np.asarray(np.bincount(group, x) / counts)

        means = np.stack([mean(y) for y in Y.T], axis=1)
        scatter = np.square(Y - means[group]).sum(axis=0)
        return cls(Z[first[order]], means, counts, scatter, mean(extra) / counts, n_sweeps)

    def only(self, target: int) -> Data:
        """The data of one function."""
        chosen = slice(target, target + 1)
        return replace(self, Y=self.Y[:, chosen], scatter=self.scatter[chosen])

    def noise(self, noise: float) -> FloatArray:
        """Variance of each mean, shape ``(n,)``, where a single measurement has ``noise``."""
        return np.asarray(noise / self.counts + self.extra)

    def log_scatter_density(self, noise: float) -> FloatArray:
        """Log density of the measurements given their means, shape ``(m,)``."""
        n_more = float(self.counts.sum()) - len(self.counts)
        constant = n_more * (math.log(noise) + _LOG_2PI) + float(np.log(self.counts).sum())
        return np.asarray(-0.5 * (constant + self.scatter / noise))


def fit_kernel(
    data: Data,
    *,
    noise_prior: tuple[float, float] = (-4.0, 1.0),
    fixed_noise: float | None = None,
    shares: FloatArray | None = None,
    curvature: float = 0.0,
    axes: FloatArray | None = None,
    start: Kernel | None = None,
) -> Kernel:
    """The kernel's parameters at their posterior mode.

    Args:
        data: one target, ``m = 1``.
        noise_prior: mean and deviation of the logarithm of the noise variance.
        fixed_noise: the noise variance where it is known; otherwise it is fitted.
        shares: of each dimension in its parameter, ``(d,)``; one by default.
        curvature, axes: b and axes of the kernel.
        start: where the climb begins, best a fit to part of the data.
    """
    from scipy.optimize import minimize  # slow to import, and a look at a study fits nothing

    likely = Kernel.likely(data.Z, data.n_sweeps, shares, curvature, axes)
    kernel = likely
    if start is not None:
        kernel = replace(start, axes=likely.axes).refitted_to(data.Z)
    if fixed_noise is not None:
        kernel = replace(kernel, noise=fixed_noise)
    objective = KernelPosterior(data, kernel, None if fixed_noise is not None else noise_prior)
    fit = minimize(
        objective,
        objective.pack(kernel),
        jac=True,
        method="L-BFGS-B",
        bounds=objective.bounds,
        options={"maxiter": _MAX_FIT_STEPS, "ftol": 1e-7, "gtol": 1e-4},
    )
    if not (math.isfinite(fit.fun) and np.isfinite(fit.x).all()):
        logger.warning("no fit to %d runs: taking what the priors expect", len(data.Z))
        return likely if fixed_noise is None else replace(likely, noise=fixed_noise)
    return objective.unpack(fit.x)


def lengthscale_deviations(
    data: Data, kernel: Kernel, noise_prior: tuple[float, float] = (-4.0, 1.0)
) -> FloatArray:
    """How uncertain the logarithms of a fitted kernel's lengthscales are, shape ``(d,)``.

    From the curvature of the log posterior at its mode (Laplace's approximation, its diagonal), by
    differences of gradients; nowhere more than the prior.
    """
    objective = KernelPosterior(data, kernel, noise_prior)
    theta, d = objective.pack(kernel), len(kernel.lengthscales)
    step = 0.1
    curvatures = np.empty(d)
    for i in range(d):
        move = np.zeros_like(theta)
        move[i] = step
        above, below = objective(theta + move)[1], objective(theta - move)[1]
        curvatures[i] = (above[i] - below[i]) / (2 * step)
    return np.asarray(1 / np.sqrt(np.maximum(curvatures, 1 / _LENGTHSCALE_PRIOR**2)))


@dataclass(frozen=True)
class KernelPosterior:
    """Log posterior of a kernel's parameters, as a function that a minimiser takes.

    Attributes:
        data: one target, ``m = 1``.
        kernel: which has the unit of the inputs, and the noise where that is known.
        noise_prior: mean and deviation of the log noise variance; None where it is known.
    """

    data: Data
    kernel: Kernel
    noise_prior: tuple[float, float] | None
    X: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "X", self.kernel.unit(self.data.Z))

    @property
    def bounds(self) -> list[tuple[float, float]]:
        bounds = (math.log(_LENGTHSCALES[0]), math.log(_LENGTHSCALES[1]))
        lengthscales = [bounds] * len(self.kernel.lengthscales)
        distrust = [(math.log(1e-4), math.log(10))] * self.data.n_sweeps
        noise = [] if self.noise_prior is None else [(math.log(_LEAST_NOISE), math.log(10))]
        return [*lengthscales, (math.log(1e-4), math.log(1e3)), *distrust, *noise]

    def pack(self, kernel: Kernel) -> FloatArray:
        noise = [kernel.noise] if self.noise_prior is not None else []
        logs = np.log([*kernel.lengthscales, kernel.outputscale, *kernel.distrust, *noise])
        return np.asarray(np.clip(logs, *np.transpose(self.bounds)))

    def unpack(self, theta: FloatArray) -> Kernel:
        d, end = len(self.kernel.lengthscales), -1 if self.noise_prior is not None else None
        values = np.exp(theta)
        return replace(
            self.kernel,
            lengthscales=values[:d],
            outputscale=float(values[d]),
            distrust=values[d + 1 : end],
            noise=self.kernel.noise if end is None else float(values[end]),
        )

    def __call__(self, theta: FloatArray) -> tuple[float, FloatArray]:
        """Negative log posterior density, and its gradient by ``theta``.

        ``theta`` holds the logarithms of the lengthscales, the outputscale, the distrust and, where
        it is not known, the noise. Where the covariance has no Cholesky factor, the value is
        infinite.
        """
        kernel, data = self.unpack(theta), self.data
        n, d = len(self.X), len(kernel.lengthscales)
        X, sweeps = self.X[:, :d], self.X[:, d:]
        scaled = X / kernel.lengthscales
        r = _distances(scaled, scaled)
        decay = np.exp(-r)
        matern = (1 + r * (1 + r / 3)) * decay
        K = kernel.outputscale * matern + (kernel.trend * kernel.shares * X) @ X.T
        if kernel.curvature:
            K += (kernel.curvature * kernel.shares * np.square(X)) @ np.square(X).T
        if data.n_sweeps:
            correlation = _correlation(sweeps, sweeps, kernel.distrust)
            K *= correlation
        K += kernel.trend
        K[np.diag_indices(n)] += data.noise(kernel.noise)
        L, info = dpotrf(K.T, lower=1)
        if info:
            return math.inf, np.zeros_like(theta)
        weights = dpotrs(L, data.Y, lower=1)[0][:, 0]
        inverse, _ = dpotri(L, lower=1)
        inverse = np.tril(inverse)
        inverse += np.tril(inverse, -1).T
        # Half of d(log likelihood)/dK.
        W = 0.5 * (np.outer(weights, weights) - inverse)
        value = -0.5 * data.Y[:, 0] @ weights - np.log(L.diagonal()).sum() - 0.5 * n * _LOG_2PI
        value += data.log_scatter_density(kernel.noise)[0]
        gradient = np.empty_like(theta)
        for i in range(data.n_sweeps):
            # d k / d log theta_i = -theta_i (k - t) between i and the others, and else 0.
            is_its = sweeps[:, i] > 0
            between = np.vdot(W[is_its][:, ~is_its], K[is_its][:, ~is_its] - kernel.trend)
            density, slope = _log_normal(theta[d + 1 + i], *_DISTRUST_PRIOR)
            value += density
            gradient[d + 1 + i] = slope - 2 * kernel.distrust[i] * between
        if data.n_sweeps:
            W *= correlation  # one on the diagonal
        # d k / d log l_k = a 5/3 (1 + r) exp(-r) (difference_k / l_k)^2
        G = W * (kernel.outputscale * 5 / 3 * (1 + r) * decay)
        gradient[:d] = 2 * (G.sum(axis=1) @ np.square(scaled) - (scaled * (G @ scaled)).sum(axis=0))
        gradient[d] = kernel.outputscale * np.vdot(W, matern)
        log_l = theta[:d]
        # Lengthscales that grow with the dimension, after Hvarfner, Hellsten and Nardi 2024,
        # "Vanilla Bayesian Optimization Performs Great in High Dimensions", sec. 4, but around
        # sqrt(d).
        density, slope = _log_normal(log_l, 0.5 * math.log(d), _LENGTHSCALE_PRIOR)
        value += density.sum()
        gradient[:d] += slope
        value += theta[d] - 1.5 * kernel.outputscale + 2 * math.log(1.5)  # Gamma(2, 1.5)
        gradient[d] += 1 - 1.5 * kernel.outputscale
        if self.noise_prior is not None:
            n_more = float(data.counts.sum()) - n
            gradient[-1] = W.diagonal() @ (kernel.noise / data.counts)
            gradient[-1] += 0.5 * (data.scatter[0] / kernel.noise - n_more)
            density, slope = _log_normal(theta[-1], *self.noise_prior)
            value += density
            gradient[-1] += slope
        return -float(value), -gradient


def _log_normal(log_x: FloatArray, mean: float, deviation: float) -> tuple[FloatArray, FloatArray]:
    """Log density of x, and its derivative by log x."""
    score = (log_x - mean) / deviation
    density = -log_x - 0.5 * score**2 - math.log(deviation) - 0.5 * _LOG_2PI
    return density, -1 - score / deviation


class GaussianProcess:
    """An exact Gaussian process with zero mean; never changed, only extended into a new one.

    Args:
        kernel: fitted.
        data: what it has seen; ``m`` functions with the same covariance.
    """

    def __init__(self, kernel: Kernel, data: Data) -> None:
        self._kernel = kernel
        self._data = data
        X = kernel.unit(data.Z)
        L = _cholesky(kernel(X, X) + np.diag(data.noise(kernel.noise)))
        self._set(X, L, _solve(L, data.Y))

    def _set(self, X: FloatArray, L: FloatArray, whitened_Y: FloatArray) -> None:
        self._X = X
        self._L = L
        self._whitened_Y = whitened_Y

    @property
    def kernel(self) -> Kernel:
        """With which it was made."""
        return self._kernel

    @property
    def noise(self) -> float:
        """Variance of a measurement around the function."""
        return self._kernel.noise

    def data(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Unit points seen ``(n, d + s)``, targets ``(n, m)``, and the noise of each ``(n,)``.

        Points that were conditioned on are among them.
        """
        variances = np.square(self._L).sum(axis=1)
        return self._X, self._L @ self._whitened_Y, variances - self._kernel.diagonal(self._X)

    def with_lengthscales(self, lengthscales: FloatArray) -> GaussianProcess:
        """The same data under a kernel with other lengthscales, shape ``(d,)``."""
        return GaussianProcess(replace(self._kernel, lengthscales=lengthscales), self._data)

    def posterior(self, Z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean ``(q, m)`` and standard deviation ``(q,)`` of the function, noise excluded."""
        X = self._kernel.unit(Z)
        whitened = _solve(self._L, self._kernel(self._X, X))
        variance = self._kernel.diagonal(X) - np.einsum("ij,ij->j", whitened, whitened)
        return whitened.T @ self._whitened_Y, np.sqrt(np.maximum(variance, 1e-12))

    def covariance(self, Z: FloatArray, other: FloatArray) -> FloatArray:
        """Posterior covariance of the function at ``(q, d)`` and ``(r, d)``, shape ``(q, r)``."""
        X, others = self._kernel.unit(Z), self._kernel.unit(other)
        whitened = _solve(self._L, self._kernel(self._X, X))
        return self._kernel(X, others) - whitened.T @ _solve(self._L, self._kernel(self._X, others))

    def sample(self, Z: FloatArray, n_samples: int, rng: np.random.Generator) -> FloatArray:
        """Joint samples of the function around its mean, shape ``(n_samples, q)``."""
        X = self._kernel.unit(Z)
        whitened = _solve(self._L, self._kernel(self._X, X))
        prior = self._kernel(X, X)
        covariance = prior - whitened.T @ whitened + 1e-9 * np.eye(len(Z))
        normal = rng.standard_normal((len(Z), n_samples))
        return np.asarray((_cholesky(covariance, prior) @ normal).T)

    def condition(self, Z: FloatArray, Y: FloatArray) -> GaussianProcess:
        """The process that has also measured ``Y`` ``(q, m)`` at ``Z`` ``(q, d)``, once each.

        Nothing is refitted: the Cholesky factor grows by the new rows, at O(n^2) for each.
        """
        X = self._kernel.unit(Z)
        n, q = len(self._X), len(X)
        whitened = _solve(self._L, self._kernel(self._X, X))
        prior = self._kernel(X, X)
        block = prior + self.noise * np.eye(q) - whitened.T @ whitened
        L = np.zeros((n + q, n + q), order="F")
        L[:n, :n] = self._L
        L[n:, :n] = whitened.T
        L[n:, n:] = _cholesky(block, prior)
        more = _solve(L[n:, n:], Y - whitened.T @ self._whitened_Y)
        extended = object.__new__(GaussianProcess)
        extended._kernel, extended._data = self._kernel, self._data
        extended._set(np.concatenate([self._X, X]), L, np.concatenate([self._whitened_Y, more]))
        return extended

    def log_marginal_likelihood(self) -> FloatArray:
        """Of each function's measurements, shape ``(m,)``."""
        constant = np.log(self._L.diagonal()).sum() + 0.5 * len(self._L) * _LOG_2PI
        evidence = -0.5 * np.square(self._whitened_Y).sum(axis=0) - constant
        return np.asarray(evidence + self._data.log_scatter_density(self.noise))


def _solve(L: FloatArray, B: FloatArray) -> FloatArray:
    """``L^-1 B`` for lower-triangular ``L``, ``B`` of shape ``(n, q)``.

    Solved from the right, as BLAS sees the transpose of a C-ordered ``B`` without a copy.
    """
    return np.asarray(dtrsm(1.0, L, B.T, side=1, lower=1, trans_a=1).T)


def _cholesky(K: FloatArray, prior: FloatArray | None = None) -> FloatArray:
    """Factor of a covariance, with the least jitter that allows it.

    Args:
        K: the covariance.
        prior: what ``K`` is a small difference from, and takes its rounding from; ``K`` by default.
            The jitter is at most 1e-4 of the diagonal.

    Raises:
        numpy.linalg.LinAlgError: none is enough.
    """
    scale = max(float((K if prior is None else prior).diagonal().mean()), 1e-12)
    for jitter in (0.0, 1e-10, 1e-8, 1e-6, 1e-4):
        L, info = dpotrf((K + jitter * scale * np.eye(len(K))).T, lower=1)
        if info == 0:
            return np.asfortranarray(np.tril(L))
    raise np.linalg.LinAlgError(f"a covariance of {len(K)} points has no Cholesky factor")
