"""Where runs beyond the sweep fail: an edge that moves with scale.

Notation
--------
z        basic coordinates of a configuration, shape ``(d,)``
w        how the log odds of success change with z, ``(d,)``; ``b`` at the mean of what succeeded

    log odds of success = b + w (z - mean)

In logarithms of the parameters this is what is known of edges: the highest learning rate that does
not diverge is a power of the model's size, and a memory is full where a product of powers is too
large. An edge is sharp and turns on few parameters: each slope has a Gaussian prior whose variance
is unknown itself (inverse gamma), so that most are nearly zero, a few are steep, and a dozen
failures among twenty parameters tell which. It is Bayesian logistic regression by Laplace's method
(Bishop 2006, "Pattern Recognition and Machine Learning", sec. 4.5), with the variances at their
mode by expectation maximisation (Tipping 2001, "Sparse Bayesian Learning and the Relevance Vector
Machine"). The search's own model (:class:`carbs.surrogate.SuccessModel`) knows of distances alone:
far from all runs it falls back to the rate of success, and a thirtyfold run is far from all.

A failure that had spent as much as the dearest run was ended for its cost, and says nothing about
runs that may cost more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit

from carbs.records import Failure, Observation
from carbs.search_space import SearchSpace
from carbs.spaces import FloatArray

# Prior of the variance of a slope, in log odds a basic unit: shape and scale of an inverse gamma.
_SHAPE, _SCALE = 0.2, 0.02
# Log odds of success at the mean of the runs that succeeded: prior mean and deviation.
_LEVEL, _LEVEL_DEVIATION = 3.0, 2.0
# Of the dearest run's cost.
_ENDED_FOR_COST = 0.95
_N_STEPS, _LONGEST_STEP = 100, 5.0
_N_ROUNDS = 30


@dataclass(frozen=True)
class SuccessLaw:
    """The odds that a configuration can be trained.

    Attributes:
        origin: mean of what succeeded, ``(d,)``.
        mode: of (b, w), ``(1 + d,)``; None while nothing has failed.
        covariance: ``(1 + d, 1 + d)``.
    """

    origin: FloatArray
    mode: FloatArray | None = None
    covariance: FloatArray | None = None

    @classmethod
    def fit(
        cls, space: SearchSpace, observations: Sequence[Observation], failures: Sequence[Failure]
    ) -> SuccessLaw:
        """To at least one observation, and to those failures that tell something."""
        dearest = max(observation.cost for observation in observations)
        failed = [f for f in failures if f.cost is None or f.cost < _ENDED_FOR_COST * dearest]
        good = space.encode_all([observation.params for observation in observations])
        origin = good.mean(axis=0)
        if not failed:
            return cls(origin)
        bad = space.encode_all([failure.params for failure in failed])
        X = _with_one(np.concatenate([good, bad]) - origin)
        labels = np.repeat([1.0, 0.0], [len(good), len(bad)])
        precision = np.ones(1 + space.n_dims)
        precision[0] = _LEVEL_DEVIATION**-2
        for _ in range(_N_ROUNDS):
            mode, covariance = _laplace(X, labels, precision)
            squares = np.square(mode) + covariance.diagonal()
            precision[1:] = (1 + 2 * _SHAPE) / (squares[1:] + 2 * _SCALE)
        return cls(origin, mode, covariance)

    def probability(self, Z: FloatArray) -> FloatArray:
        """That runs at ``Z`` ``(n, d)`` succeed, ``(n,)``, as uncertain as the edge is.

        The logistic-Gaussian integral is MacKay's (1992, "The Evidence Framework Applied to
        Classification Networks", eq. 10).
        """
        if self.mode is None or self.covariance is None:
            return np.ones(len(Z))
        X = _with_one(Z - self.origin)
        variances = np.einsum("ni,ij,nj->n", X, self.covariance, X)
        return np.asarray(expit(X @ self.mode / np.sqrt(1 + math.pi * variances / 8)))

    def likeliest(self, Z: FloatArray) -> FloatArray:
        """The same with the edge where it most likely is, ``(n,)``.

        Far out all is uncertain alike; which of two runs to prefer turns on where the edge is.
        """
        if self.mode is None:
            return np.ones(len(Z))
        return np.asarray(expit(_with_one(Z - self.origin) @ self.mode))


def _with_one(Z: FloatArray) -> FloatArray:
    return np.concatenate([np.ones((len(Z), 1)), Z], axis=1)


def _laplace(
    X: FloatArray, labels: FloatArray, precision: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Mode and covariance of (b, w), by Newton's method."""
    mean = np.zeros(X.shape[1])
    mean[0] = _LEVEL
    w = mean
    for _ in range(_N_STEPS):
        p = expit(X @ w)
        gradient = X.T @ (labels - p) - precision * (w - mean)
        hessian = (X * (p * (1 - p))[:, None]).T @ X + np.diag(precision)
        step = np.linalg.solve(hessian, gradient)
        w = w + step * min(1.0, _LONGEST_STEP / max(float(np.abs(X @ step).max()), 1e-9))
        if np.abs(step).max() < 1e-8:
            break
    return np.asarray(w), np.asarray(np.linalg.inv(hessian), dtype=float)
