"""What is believed of loss, cost and success, fitted to observations.

Notation
--------
Z        basic points, shape ``(n, d)``
y        what a process models, shape ``(n,)``: the warped loss, the log cost, the success score
E        irreducible loss

The loss is warped, ``y = log(loss - E)``, with ``E`` below every loss seen: along a scaling law
``loss = E + k C^-g`` the warped loss is a line in log C. ``E`` is unknown; a handful of values from
"far below" (where the warp is linear) to "just below" are weighed by their marginal likelihood, and
every prediction averages over them. They share one covariance, so this costs one more right-hand
side each. Losses above that of the search centre (runs that learnt little or nothing) are drawn in
on a logarithmic scale first: how bad they are says little about the front.

Success is a classification. With the Dirichlet transform of Milios et al. 2018 ("Dirichlet-based
Gaussian processes for large-scale calibrated classification", eqs. 4-5) its two latent processes
differ by one Gaussian process with known noise, so it stays exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtr, ndtri

from carbs.gaussian_process import FittedKernel, GaussianProcess, fit_kernel, n_fitted
from carbs.records import Failure, Observation
from carbs.space import FloatArray, SearchSpace

# How far below the least loss E may lie, in units of the spread of the losses.
_SHIFTS = (0.05, 0.15, 0.4, 1.0, 3.0, 30.0)
# Pseudo-count of the class that was not seen, in the Dirichlet transform.
_ALPHA = 0.01


@dataclass(frozen=True)
class Standardisation:
    """``(x - mean) / spread``."""

    mean: float
    spread: float

    @classmethod
    def of(cls, x: FloatArray, least_spread: float = 1e-12) -> Standardisation:
        mean = float(x.mean())
        return cls(mean, max(float(x.std()), 1e-9 * abs(mean), least_spread))

    def apply(self, x: FloatArray) -> FloatArray:
        return np.asarray((x - self.mean) / self.spread)

    def invert(self, y: FloatArray) -> FloatArray:
        return np.asarray(self.mean + self.spread * y)


@dataclass(frozen=True)
class Warp:
    """``y = (log(loss - E) - mean) / spread`` for one irreducible level ``E``."""

    irreducible: float
    scale: Standardisation

    @classmethod
    def of(cls, losses: FloatArray, irreducible: float) -> Warp:
        return cls(irreducible, Standardisation.of(np.log(losses - irreducible)))

    def apply(self, losses: FloatArray) -> FloatArray:
        return self.scale.apply(np.log(losses - self.irreducible))

    def invert(self, y: FloatArray) -> FloatArray:
        return np.asarray(self.irreducible + np.exp(self.scale.invert(y)))

    def log_derivative(self, losses: FloatArray) -> FloatArray:
        return np.asarray(-np.log(losses - self.irreducible) - math.log(self.scale.spread))


@dataclass(frozen=True)
class SuccessModel:
    """Log odds of success: ``score`` times a process around ``mean``."""

    process: GaussianProcess
    mean: float
    score: float

    def probability(self, Z: FloatArray) -> FloatArray:
        """Shape ``(q,)``. The logistic-Gaussian integral is MacKay's (1992, eq. 10)."""
        mean, std = self.process.posterior(Z)
        mean, std = self.score * (self.mean + mean[:, 0]), self.score * std
        logit = mean / np.sqrt(1 + math.pi * std**2 / 8)
        return np.asarray(1 / (1 + np.exp(-np.clip(logit, -500, 500))))


@dataclass(frozen=True)
class Surrogate:
    """What is believed of loss, cost and success at every point of the basic space.

    Losses here are to be minimised; the optimizer turns a maximisation around.

    Attributes:
        output_process: one right-hand side a warp.
        warps: candidates for the irreducible level, with ``warp_weights`` that sum to one.
        cost_process: of the log cost, standardised by ``cost_scale``.
        success: None while nothing has failed.
    """

    output_process: GaussianProcess
    warps: tuple[Warp, ...]
    warp_weights: FloatArray
    cost_process: GaussianProcess
    cost_scale: Standardisation
    success: SuccessModel | None

    @property
    def best_warp(self) -> int:
        return int(np.argmax(self.warp_weights))

    def warped_output(self, Z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and deviation ``(q,)`` of the loss under the most likely warp, noise excluded."""
        mean, std = self.output_process.posterior(Z)
        return mean[:, self.best_warp], std

    def log_cost(self, Z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and deviation ``(q,)`` of the natural logarithm of the cost, noise excluded."""
        mean, std = self.cost_process.posterior(Z)
        return self.cost_scale.invert(mean[:, 0]), self.cost_scale.spread * std

    def cost_noise(self) -> float:
        """Deviation of a measured log cost around its function."""
        return self.cost_scale.spread * math.sqrt(self.cost_process.noise)

    def success_probability(self, Z: FloatArray) -> FloatArray:
        """Shape ``(q,)``; one while nothing has failed."""
        return np.ones(len(Z)) if self.success is None else self.success.probability(Z)

    def output_quantiles(
        self, Z: FloatArray, levels: Sequence[float], with_noise: bool = True
    ) -> FloatArray:
        """Quantiles of the loss, of a new measurement or of the function: ``(q, n_levels)``.

        The distribution is the mixture over irreducible levels; its quantiles are found by
        bisection between the quantiles of its parts.
        """
        means, std = self.output_process.posterior(Z)
        if with_noise:
            std = np.sqrt(std**2 + self.output_process.noise)
        parts = np.empty((len(Z), len(self.warps), len(levels)))
        for w, warp in enumerate(self.warps):
            for i, level in enumerate(levels):
                parts[:, w, i] = warp.invert(means[:, w] + std * ndtri(level))
        keeps = self.warp_weights > 1e-6
        low, high = parts[:, keeps].min(axis=1), parts[:, keeps].max(axis=1)
        for _ in range(50):
            middle = (low + high) / 2
            below = np.zeros_like(middle)
            for w, warp in enumerate(self.warps):
                if not keeps[w]:
                    continue
                inside = middle > warp.irreducible
                scores = (
                    warp.apply(np.where(inside, middle, warp.irreducible + 1.0)) - means[:, [w]]
                ) / std[:, None]
                below += self.warp_weights[w] * np.where(inside, ndtr(scores), 0.0)
            high = np.where(below > levels, middle, high)
            low = np.where(below > levels, low, middle)
        return np.asarray((low + high) / 2)

    def cost_quantiles(self, Z: FloatArray, levels: Sequence[float]) -> FloatArray:
        """Quantiles of a new measurement's cost, ``(q, n_levels)``."""
        mean, std = self.log_cost(Z)
        std = np.sqrt(std**2 + self.cost_noise() ** 2)
        logs = mean[:, None] + std[:, None] * ndtri(np.array(levels))
        return np.asarray(np.exp(np.clip(logs, -700, 700)))

    def condition(self, Z: FloatArray) -> Surrogate:
        """As if the pending points ``Z`` had come out as predicted."""
        if not len(Z):
            return self
        output_mean, _ = self.output_process.posterior(Z)
        cost_mean, _ = self.cost_process.posterior(Z)
        return replace(
            self,
            output_process=self.output_process.condition(Z, output_mean),
            cost_process=self.cost_process.condition(Z, cost_mean),
        )


def fit_surrogate(
    space: SearchSpace, observations: Sequence[Observation], failures: Sequence[Failure] = ()
) -> Surrogate:
    """Fit all three processes.

    Args:
        space: of the configurations.
        observations: at least one; outputs are to be minimised.
        failures: configurations that could not be trained.
    """
    Z = space.encode_all([observation.params for observation in observations])
    losses = _draw_in(np.array([observation.output for observation in observations]), Z)
    log_costs = np.log([observation.cost for observation in observations])

    n_first = n_fitted(len(losses))
    output_kernel = _fit_output_kernel(Z[:n_first], losses[:n_first])
    warps = _warps(losses)
    targets = np.stack([warp.apply(losses) for warp in warps], axis=1)
    output_process = GaussianProcess(output_kernel, Z, targets)
    log_evidence = _log_evidence(output_process, warps, losses)
    weights = np.exp(log_evidence - log_evidence.max())

    # At least one nat: the first few runs may cost alike, but a step away from them need not.
    cost_scale = Standardisation.of(log_costs, least_spread=1.0)
    first_costs = log_costs[:n_first]
    first_scale = Standardisation.of(first_costs, least_spread=1.0)
    cost_kernel = fit_kernel(Z[:n_first], first_scale.apply(first_costs))
    cost_process = GaussianProcess(cost_kernel, Z, cost_scale.apply(log_costs)[:, None])

    success = None
    if failures:
        success = _fit_success(Z, space.encode_all([failure.params for failure in failures]))
    return Surrogate(
        output_process,
        warps,
        weights / weights.sum(),
        cost_process,
        cost_scale,
        success,
    )


def _fit_output_kernel(Z: FloatArray, losses: FloatArray) -> FittedKernel:
    """Fitted at a likely warp, and once more where another turns out likelier."""
    warps = _warps(losses)
    targets = np.stack([warp.apply(losses) for warp in warps], axis=1)
    middle = len(warps) // 2
    kernel = fit_kernel(Z, targets[:, middle])
    evidence = _log_evidence(GaussianProcess(kernel, Z, targets), warps, losses)
    best = int(np.argmax(evidence))
    return kernel if best == middle else fit_kernel(Z, targets[:, best])


def _log_evidence(
    process: GaussianProcess, warps: Sequence[Warp], losses: FloatArray
) -> FloatArray:
    """Log marginal likelihood of the losses, by warp: shape ``(m,)``."""
    jacobian = [float(warp.log_derivative(losses).sum()) for warp in warps]
    return np.asarray(process.log_marginal_likelihood() + np.array(jacobian))


def _draw_in(losses: FloatArray, Z: FloatArray) -> FloatArray:
    """The losses, those above the centre's on a logarithmic scale."""
    center_loss = float(losses[np.argmin(np.square(Z).sum(axis=1))])
    scale = center_loss - float(losses.min())
    if scale <= 0:
        return losses
    above = np.maximum(losses - center_loss, 0.0)
    return np.asarray(np.minimum(losses, center_loss) + scale * np.log1p(above / scale))


def _warps(losses: FloatArray) -> tuple[Warp, ...]:
    # The spread of the better half: a few terrible runs do not set the scale.
    spread = float(np.median(losses) - losses.min())
    if spread <= 0:
        spread = float(np.ptp(losses))
    spread = max(spread, 1e-9 * abs(float(losses.min())), 1e-300)
    return tuple(Warp.of(losses, float(losses.min()) - shift * spread) for shift in _SHIFTS)


def _fit_success(Z: FloatArray, failed_Z: FloatArray) -> SuccessModel:
    var_seen, var_unseen = math.log(1 / (1 + _ALPHA) + 1), math.log(1 / _ALPHA + 1)
    score = math.log(1 + _ALPHA) - var_seen / 2 - math.log(_ALPHA) + var_unseen / 2
    labels = np.concatenate([np.ones(len(Z)), -np.ones(len(failed_Z))])
    # The rate of success, as if one more had succeeded and one more had failed.
    rate = (len(Z) + 1) / (len(labels) + 2)
    mean = math.log(rate / (1 - rate)) / score
    points = np.concatenate([Z, failed_Z])
    noise = (var_seen + var_unseen) / score**2
    first = np.concatenate(
        [np.arange(n_fitted(len(Z))), len(Z) + np.arange(n_fitted(len(failed_Z)))]
    )
    kernel = fit_kernel(points[first], labels[first], fixed_noise=noise)
    process = GaussianProcess(kernel, points, (labels - mean)[:, None])
    return SuccessModel(process, mean, score)
