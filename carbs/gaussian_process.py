"""Exact Gaussian processes: the kernel, its fit, and a posterior that grows point by point.

Notation
--------
Z        basic points, shape ``(n, d)``
Y        standardised targets, shape ``(n, m)``: m functions with the same covariance
K        prior covariance plus noise, ``(n, n)``; ``L`` its Cholesky factor
k(z, z') = a Matern-5/2 (lengthscale a dimension) + z.z' + 1, after z is scaled to a unit box

The linear part is a straight line on log parameters, with unknown level and slopes (each of unit
variance) integrated out: cost laws are nearly log-linear, and so is the distance of a loss from its
irreducible level. Beyond the data the process therefore continues the trend, with an uncertainty
that grows, where a stationary one would fall back to its prior.

Models, kernels, priors and fits are gpytorch's and botorch's. The posterior is computed here, from
one Cholesky factor, since it is conditioned point by point on pending suggestions.
"""

from __future__ import annotations

import copy
import functools
import logging
import math
import warnings
from dataclasses import dataclass
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

from carbs.space import FloatArray

logger = logging.getLogger(__name__)

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
