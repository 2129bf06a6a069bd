"""Gaussian processes for loss, cost and success, fitted to observations.

Notation
--------
Z        basic points, shape ``(n, d)``
y        what a process models, shape ``(n,)``: the warped loss, the log cost, the success score
K        prior covariance plus noise, ``(n, n)``; ``L`` its Cholesky factor
k(z, z') = a Matern-5/2 (lengthscale a dimension) + z.z' + 1, after z is scaled to a unit box

The linear part is a straight line on log parameters, with unknown level and slopes (each of unit
variance) integrated out: cost laws are nearly log-linear, and so is the distance of a loss from its
irreducible level. Beyond the data the process therefore continues the trend, with an uncertainty
that grows, where a stationary one would fall back to its prior.

The loss is warped, ``y = log(loss - E)``, with ``E`` below every loss seen: along a scaling law
``loss = E + k C^-g`` the warped loss is a line in log C. ``E`` is unknown; a handful of values from
"far below" (where the warp is linear) to "just below" are weighed by their marginal likelihood, and
every prediction averages over them. The processes share one ``K``, so this costs one more
right-hand side each. Losses far above that of the search centre (runs that learnt nothing) are
drawn in to a ceiling first: how bad they are says little about the front.

Success is a classification. With the Dirichlet transform of Milios et al. 2018 ("Dirichlet-based
Gaussian processes for large-scale calibrated classification", eqs. 4-5) its two latent processes
differ by one Gaussian process with known noise, so it stays exact.

Models, kernels, priors and fits are gpytorch's and botorch's. The posterior is computed here, from
one Cholesky factor, since it is conditioned point by point on pending suggestions.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from botorch.exceptions.errors import ModelFittingError
from botorch.exceptions.warnings import BotorchWarning
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.constraints import GreaterThan
from gpytorch.kernels import Kernel, MaternKernel, ScaleKernel
from gpytorch.likelihoods import FixedNoiseGaussianLikelihood, GaussianLikelihood
from gpytorch.means import ZeroMean
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior, LogNormalPrior
from scipy.special import ndtr, ndtri

from carbs.records import Failure, Observation
from carbs.space import FloatArray, SearchSpace

logger = logging.getLogger(__name__)

# How far below the least loss E may lie, in units of the spread of the losses.
_SHIFTS = (0.05, 0.15, 0.4, 1.0, 3.0, 30.0)
# Pseudo-count of the class that was not seen, in the Dirichlet transform.
_ALPHA = 0.01
_MAX_FIT_STEPS = 75


@dataclass(frozen=True)
class FittedKernel:
    """A kernel with its parameters, the noise variance, and the unit of its inputs."""

    kernel: Any
    noise: float
    middle: torch.Tensor
    width: torch.Tensor

    def __call__(self, Z: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
        with torch.no_grad():
            covariance: torch.Tensor = self.kernel(Z, other).to_dense()
        return covariance

    def diagonal(self, Z: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            variances: torch.Tensor = self.kernel(Z, diag=True)
        return variances


class TrendKernel(Kernel):  # type: ignore[misc]  # gpytorch has no types
    """``z.z' + 1``: a level and a slope in each dimension, all of unit variance."""

    def forward(
        self, x1: torch.Tensor, x2: torch.Tensor, diag: bool = False, **_: Any
    ) -> torch.Tensor:
        if diag:
            return (x1 * x2).sum(dim=-1) + 1
        return x1 @ x2.transpose(-1, -2) + 1


def fit_kernel(Z: FloatArray, y: FloatArray, fixed_noise: float | None = None) -> FittedKernel:
    """The kernel's parameters at their posterior mode.

    Args:
        Z: shape ``(n, d)``, n >= 1.
        y: standardised targets, shape ``(n,)``.
        fixed_noise: the noise variance where it is known; otherwise it is fitted.
    """
    return _fit_kernel(Z.shape, Z.tobytes(), np.asarray(y, dtype=float).tobytes(), fixed_noise)


@functools.lru_cache(maxsize=256)
def _fit_kernel(
    shape: tuple[int, int], Z: bytes, y: bytes, fixed_noise: float | None
) -> FittedKernel:
    points = torch.from_numpy(np.frombuffer(Z).reshape(shape).copy())
    targets = torch.from_numpy(np.frombuffer(y).reshape(-1, 1).copy())
    n_dims = shape[1]
    lowest, highest = points.min(dim=0).values, points.max(dim=0).values
    # At least one unit: a dimension that has hardly varied must not look wild.
    middle, width = (lowest + highest) / 2, (highest - lowest).clamp_min(1.0)
    points = (points - middle) / width
    # Lengthscales that grow with the dimension, after Hvarfner, Hellsten and Nardi 2024, "Vanilla
    # Bayesian Optimization Performs Great in High Dimensions", sec. 4, but around sqrt(d).
    lengthscale_prior = LogNormalPrior(math.log(n_dims) / 2, 0.8)
    matern = MaternKernel(nu=2.5, ard_num_dims=n_dims, lengthscale_prior=lengthscale_prior)
    matern.initialize(lengthscale=0.5 * math.sqrt(n_dims))
    kernel = ScaleKernel(matern, outputscale_prior=GammaPrior(2.0, 1.5)) + TrendKernel()
    likelihood: Any
    if fixed_noise is None:
        likelihood = GaussianLikelihood(
            noise_prior=LogNormalPrior(-4.0, 1.0),
            noise_constraint=GreaterThan(1e-6, initial_value=1e-2),
        )
    else:
        likelihood = FixedNoiseGaussianLikelihood(torch.full_like(targets[:, 0], fixed_noise))
    with warnings.catch_warnings():
        # The targets are standardised by the caller; a fit that stops early is still a fit.
        warnings.simplefilter("ignore", BotorchWarning)
        warnings.simplefilter("ignore", RuntimeWarning)
        model = SingleTaskGP(
            points,
            targets,
            likelihood=likelihood,
            covar_module=kernel,
            mean_module=ZeroMean(),
            outcome_transform=None,
        )
        model.eval()
        start = copy.deepcopy(model.state_dict())
        try:
            fit_gpytorch_mll(
                ExactMarginalLogLikelihood(model.likelihood, model),
                optimizer_kwargs={"options": {"maxiter": _MAX_FIT_STEPS}},
                max_attempts=1,
                warning_handler=lambda _: True,
            )
        except (ModelFittingError, RuntimeError) as error:
            logger.warning("no fit to %d runs, using the priors' parameters: %s", shape[0], error)
            model.load_state_dict(start)
    noise = fixed_noise if fixed_noise is not None else float(likelihood.noise.item())
    return FittedKernel(kernel.eval(), noise, middle, width)


def n_fitted(n: int) -> int:
    """Of how many observations, the first ones, the kernel's parameters are fitted to.

    All of the first sixteen, and then those up to the last step of a ladder that grows by an
    eighth. Parameters change slowly, and so most suggestions need no fit.
    """
    step = 16
    if n <= step:
        return n
    while (following := step + step // 8) <= n:
        step = following
    return step


class GaussianProcess:
    """An exact Gaussian process with zero mean; never changed, only extended into a new one.

    Args:
        kernel: fitted.
        Z: basic points, shape ``(n, d)``.
        Y: standardised targets, shape ``(n, m)``: m functions with the same covariance.
    """

    def __init__(self, kernel: FittedKernel, Z: FloatArray, Y: FloatArray) -> None:
        self._kernel = kernel
        self._Z = self._unit(Z)
        self._Y = torch.as_tensor(Y, dtype=torch.float64)
        self._solve(_cholesky(kernel(self._Z) + kernel.noise * torch.eye(len(Z))))

    def _solve(self, cholesky: torch.Tensor) -> None:
        self._cholesky = cholesky
        self._weights = torch.cholesky_solve(self._Y, cholesky)

    @property
    def noise(self) -> float:
        """Variance of a measurement around the function."""
        return self._kernel.noise

    def _unit(self, Z: FloatArray) -> torch.Tensor:
        points = torch.as_tensor(Z, dtype=torch.float64)
        return (points - self._kernel.middle) / self._kernel.width

    def _cross(self, unit_Z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Covariance with the data ``(q, n)``, and the same whitened, ``(n, q)``."""
        cross = self._kernel(unit_Z, self._Z)
        whitened = torch.linalg.solve_triangular(self._cholesky, cross.T, upper=False)
        return cross, whitened

    def posterior(self, Z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean ``(q, m)`` and standard deviation ``(q,)`` of the function, noise excluded."""
        unit_Z = self._unit(Z)
        cross, whitened = self._cross(unit_Z)
        prior = self._kernel.diagonal(unit_Z)
        variance = (prior - whitened.square().sum(dim=0)).clamp_min(1e-12)
        return (cross @ self._weights).numpy(), variance.sqrt().numpy()

    def sample(self, Z: FloatArray, n_samples: int, rng: np.random.Generator) -> FloatArray:
        """Joint samples of the function around its mean, shape ``(n_samples, q)``."""
        unit_Z = self._unit(Z)
        _, whitened = self._cross(unit_Z)
        prior = self._kernel(unit_Z)
        root = _cholesky(prior - whitened.T @ whitened + 1e-9 * torch.eye(len(Z)))
        normal = torch.as_tensor(rng.standard_normal((len(Z), n_samples)))
        return np.asarray((root @ normal).T.numpy())

    def condition(self, Z: FloatArray, Y: FloatArray) -> GaussianProcess:
        """The process that has also seen ``Y`` ``(q, m)`` at ``Z`` ``(q, d)``; nothing is refitted.

        The Cholesky factor is extended by the new rows, at O(n^2) for each.
        """
        unit_Z = self._unit(Z)
        _, whitened = self._cross(unit_Z)
        n, q = len(self._Z), len(unit_Z)
        block = self._kernel(unit_Z) + self.noise * torch.eye(q)
        cholesky = torch.zeros((n + q, n + q), dtype=torch.float64)
        cholesky[:n, :n] = self._cholesky
        cholesky[n:, :n] = whitened.T
        cholesky[n:, n:] = _cholesky(block - whitened.T @ whitened)
        extended = copy.copy(self)
        extended._Z = torch.cat([self._Z, unit_Z])
        extended._Y = torch.cat([self._Y, torch.as_tensor(Y, dtype=torch.float64)])
        extended._solve(cholesky)
        return extended

    def log_marginal_likelihood(self) -> FloatArray:
        """Of each right-hand side, shape ``(m,)``."""
        whitened = torch.linalg.solve_triangular(self._cholesky, self._Y, upper=False)
        log_determinant = self._cholesky.diagonal().log().sum()
        constant = 0.5 * len(self._Y) * math.log(2 * math.pi)
        evidence = -0.5 * whitened.square().sum(dim=0) - log_determinant - constant
        return np.asarray(evidence.numpy())


def _cholesky(K: torch.Tensor) -> torch.Tensor:
    """Factor of a covariance, with the least jitter (up to 1e-4 of its diagonal) that allows it."""
    scale = K.diagonal().mean().clamp_min(1e-12)
    factor: torch.Tensor
    for jitter in (0.0, 1e-10, 1e-8, 1e-6):
        factor, info = torch.linalg.cholesky_ex(
            K + jitter * scale * torch.eye(len(K), dtype=K.dtype)
        )
        if info.item() == 0:
            return factor
    K = K + 1e-4 * scale * torch.eye(len(K), dtype=K.dtype)
    factor = torch.linalg.cholesky(K)
    return factor


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
