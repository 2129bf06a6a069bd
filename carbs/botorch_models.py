"""The surrogate as a BoTorch model: the same processes, for acquisition functions of its users.

gpytorch computes the posterior, batched and differentiable; the kernels' parameters are those that
were fitted here, and stay. torch is imported with this module and by nothing else in the package.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from botorch import settings
from botorch.models import ModelListGP, SingleTaskGP
from botorch.models.transforms.input import InputTransform
from gpytorch.kernels import Kernel as TorchKernel
from gpytorch.means import ConstantMean
from gpytorch.settings import min_fixed_noise
from torch import Tensor
from torch.nn import Module

from carbs.gaussian_process import GaussianProcess, Kernel
from carbs.spaces import FloatArray

# Below it a squared distance has no gradient that could be told from rounding.
_LEAST_SQUARE = 1e-12


def to_model_list(processes: list[tuple[GaussianProcess, int, float, float]]) -> ModelListGP:
    """One model for each process, in its order.

    Args:
        processes: each with which of its functions is meant, and the mean and the spread that turn
            its standardised values into those of the outcome.
    """
    # The kernel has its own box for the inputs, and some costs are measured without noise.
    with settings.validate_input_scaling(False), min_fixed_noise(double_value=0.0):
        models = [_model(*process) for process in processes]
    return ModelListGP(*models).eval()


def _model(process: GaussianProcess, target: int, mean: float, spread: float) -> SingleTaskGP:
    X, Y, noise = process.data()
    kernel = process.kernel
    scaled = replace(
        kernel,
        outputscale=spread**2 * kernel.outputscale,
        trend=spread**2 * kernel.trend,
        curvature=spread**2 * kernel.curvature,
    )
    constant = ConstantMean().double()
    constant.constant = mean
    model = SingleTaskGP(
        _tensor(X),
        _tensor(mean + spread * Y[:, [target]]),
        _tensor(spread**2 * noise)[:, None],
        covar_module=_Covariance(scaled),
        mean_module=constant,
        outcome_transform=None,
        input_transform=_ToUnit(kernel),
    )
    return model.requires_grad_(False)


class _Covariance(TorchKernel):  # type: ignore[misc]
    """:class:`carbs.gaussian_process.Kernel` of unit points, in torch."""

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self._outputscale, self._trend = kernel.outputscale, kernel.trend
        self._curvature = kernel.curvature
        self.register_buffer("_lengthscales", _tensor(kernel.lengthscales))
        self.register_buffer("_shares", _tensor(kernel.shares))
        self.register_buffer("_distrust", _tensor(kernel.distrust))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **options: Any) -> Tensor:
        """Covariance ``(..., n, q)`` of ``(..., n, d + s)`` and ``(..., q, d + s)``."""
        if diag:
            one_each: Tensor = self.forward(x1[..., None, :], x2[..., None, :])
            return one_each[..., 0, 0]
        d = len(self._lengthscales)
        u, v = x1[..., :d], x2[..., :d]
        apart = (u[..., :, None, :] - v[..., None, :, :]) / self._lengthscales
        r = (5 * apart.square().sum(-1)).clamp_min(_LEAST_SQUARE).sqrt()
        covariance = self._outputscale * (1 + r + r.square() / 3) * (-r).exp()
        bowls = self._curvature * (u.square() * self._shares) @ v.square().transpose(-1, -2)
        covariance = covariance + self._trend * (u * self._shares) @ v.transpose(-1, -2) + bowls
        if len(self._distrust):
            a, b = x1[..., d:], x2[..., d:]
            one, other = a @ self._distrust, b @ self._distrust
            both = 2 * (a * self._distrust) @ b.transpose(-1, -2)
            covariance = covariance * (both - one[..., :, None] - other[..., None, :]).exp()
        return torch.as_tensor(covariance + self._trend)


class _ToUnit(InputTransform, Module):  # type: ignore[misc]
    """Basic points ``(..., d)`` of the new sweep as unit points ``(..., d + s)``.

    The points that the process has seen are given as unit points already.
    """

    _axes: Tensor
    _middle: Tensor
    _width: Tensor

    def __init__(self, kernel: Kernel) -> None:
        super().__init__()
        self.transform_on_train = False
        self.transform_on_eval = True
        self.transform_on_fantasize = True
        self._n_sweeps = len(kernel.distrust)
        self.register_buffer("_axes", _tensor(kernel.axes))
        self.register_buffer("_middle", _tensor(kernel.middle))
        self.register_buffer("_width", _tensor(kernel.width))

    def transform(self, X: Tensor) -> Tensor:
        return torch.nn.functional.pad(
            (X @ self._axes - self._middle) / self._width, (0, self._n_sweeps)
        )


def _tensor(x: FloatArray) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)
