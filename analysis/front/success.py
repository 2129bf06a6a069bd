"""Where runs beyond the sweep fail: an edge that moves with scale.

Notation
--------
z        basic coordinates of a configuration, shape ``(d,)``
w        how the log odds of success change with z, ``(d,)``; ``b`` at the mean of what succeeded
t        prior deviation of w, of a few

    log odds of success = b + w (z - mean)

In logarithms of the parameters this is what is known of edges: the highest learning rate that does
not diverge is a power of the model's size, and a memory is full where a product of powers is too
large. It is Bayesian logistic regression with Gaussian priors, by Laplace's method (Bishop 2006,
"Pattern Recognition and Machine Learning", sec. 4.5), mixed over t by evidence. The search's own
model (:class:`carbs.surrogate.SuccessModel`) knows of distances alone: far from all runs it falls
back to the rate of success, and a thirtyfold run is far from all.

A failure that had spent as much as the dearest run was ended for its cost, and says nothing about
runs that may cost more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, softmax

from carbs.records import Failure, Observation
from carbs.search_space import SearchSpace
from carbs.spaces import FloatArray

# t, in log odds a basic unit: none of the parameters matters much, up to a sharp edge.
_DEVIATIONS = (0.1, 0.3, 1.0, 3.0)
# Log odds of success at the mean of the runs that succeeded: prior mean and deviation.
_LEVEL, _LEVEL_DEVIATION = 3.0, 2.0
# Of the dearest run's cost.
_ENDED_FOR_COST = 0.95
_N_STEPS, _LONGEST_STEP = 100, 5.0


@dataclass(frozen=True)
class SuccessLaw:
    """The odds that a configuration can be trained.

    Attributes:
        origin: mean of what succeeded, ``(d,)``.
        modes: of (b, w) for each t, ``(n, 1 + d)``; none while nothing has failed.
        covariances: ``(n, 1 + d, 1 + d)``.
        weights: of each t, ``(n,)``.
    """

    origin: FloatArray
    modes: FloatArray
    covariances: FloatArray
    weights: FloatArray

    @classmethod
    def fit(
        cls, space: SearchSpace, observations: Sequence[Observation], failures: Sequence[Failure]
    ) -> SuccessLaw:
        """To at least one observation, and to those failures that tell something."""
        dearest = max(observation.cost for observation in observations)
        failed = [f for f in failures if f.cost is None or f.cost < _ENDED_FOR_COST * dearest]
        good = space.encode_all([observation.params for observation in observations])
        origin, n = good.mean(axis=0), 1 + space.n_dims
        if not failed:
            return cls(origin, np.empty((0, n)), np.empty((0, n, n)), np.empty(0))
        bad = space.encode_all([failure.params for failure in failed])
        X = _with_one(np.concatenate([good, bad]) - origin)
        labels = np.repeat([1.0, 0.0], [len(good), len(bad)])
        fits = [_laplace(X, labels, deviation) for deviation in _DEVIATIONS]
        modes, covariances, evidence = (np.array(part) for part in zip(*fits, strict=True))
        return cls(origin, modes, covariances, softmax(evidence))

    def probability(self, Z: FloatArray) -> FloatArray:
        """That runs at ``Z`` ``(n, d)`` succeed, ``(n,)``, as uncertain as the edge is.

        The logistic-Gaussian integral is MacKay's (1992, "The Evidence Framework Applied to
        Classification Networks", eq. 10).
        """
        X = _with_one(Z - self.origin)
        variances = np.einsum("ni,kij,nj->kn", X, self.covariances, X)
        return self._mixed(self.modes @ X.T / np.sqrt(1 + math.pi * variances / 8))

    def likeliest(self, Z: FloatArray) -> FloatArray:
        """The same with the edge where it most likely is, ``(n,)``.

        Far out all is uncertain alike; which of two runs to prefer turns on where the edge is.
        """
        return self._mixed(self.modes @ _with_one(Z - self.origin).T)

    def _mixed(self, log_odds: FloatArray) -> FloatArray:
        if not len(self.weights):
            return np.ones(log_odds.shape[1])
        return np.asarray(self.weights @ expit(log_odds))


def _with_one(Z: FloatArray) -> FloatArray:
    return np.concatenate([np.ones((len(Z), 1)), Z], axis=1)


def _laplace(
    X: FloatArray, labels: FloatArray, deviation: float
) -> tuple[FloatArray, FloatArray, float]:
    """Mode, covariance and log evidence (up to a constant), by Newton's method."""
    mean = np.zeros(X.shape[1])
    mean[0] = _LEVEL
    precision = np.full(X.shape[1], deviation**-2)
    precision[0] = _LEVEL_DEVIATION**-2
    w = mean
    for _ in range(_N_STEPS):
        p = expit(X @ w)
        gradient = X.T @ (labels - p) - precision * (w - mean)
        hessian = (X * (p * (1 - p))[:, None]).T @ X + np.diag(precision)
        step = np.linalg.solve(hessian, gradient)
        w = w + step * min(1.0, _LONGEST_STEP / max(float(np.abs(X @ step).max()), 1e-9))
        if np.abs(step).max() < 1e-8:
            break
    log_odds = X @ w
    fit = float(labels @ log_odds - np.logaddexp(0.0, log_odds).sum())
    prior = 0.5 * float(np.log(precision).sum() - precision @ np.square(w - mean))
    evidence = fit + prior - 0.5 * float(np.linalg.slogdet(hessian)[1])
    return np.asarray(w), np.asarray(np.linalg.inv(hessian), dtype=float), evidence
