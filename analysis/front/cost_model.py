"""What a configuration costs, along the front and beside it: a line in the basic coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from carbs.gaussian_process import Data, GaussianProcess, Kernel, fit_kernel
from carbs.spaces import FloatArray

# Shares of the least cost that may be overhead.
_OVERHEADS = (0.0, 0.3, 0.5, 0.65, 0.72, 0.77, 0.81, 0.85, 0.88, 0.92, 0.96)


_COST_NOISE_PRIOR = (-8.0, 3.0)


@dataclass(frozen=True)
class CostModel:
    """``cost = overhead + 10^(f(z))`` with f a Gaussian process with a linear trend."""

    overhead: float
    process: GaussianProcess
    mean: float
    spread: float

    @classmethod
    def fit(cls, Z: FloatArray, costs: FloatArray) -> CostModel:
        """The overhead at its posterior mode: of a grid, then of a finer one around the best."""
        kernel = None
        fits: dict[float, tuple[float, CostModel]] = {}
        for share in _OVERHEADS:
            fits[share] = _with_overhead(Z, costs, share, kernel)
            kernel = fits[share][1].process.kernel
        tried = sorted(fits)
        best = max(tried, key=lambda share: fits[share][0])
        if best > 0:
            i = tried.index(best)
            for share in np.linspace(tried[i - 1], tried[min(i + 1, len(tried) - 1)], 7)[1:-1]:
                fits[float(share)] = _with_overhead(Z, costs, float(share), kernel)
        return max(fits.values(), key=lambda fit: fit[0])[1]

    def scale(self, Z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and deviation of c, each ``(n,)``, noise excluded."""
        mean, std = self.process.posterior(Z)
        return self.mean + self.spread * mean[:, 0], self.spread * std

    def scale_of(self, cost: float) -> float:
        return math.log10(max(cost - self.overhead, 1e-3 * cost))

    def cost_of(self, c: FloatArray | float) -> FloatArray:
        return np.asarray(self.overhead + 10.0 ** np.minimum(np.asarray(c), 300.0))

    def quantiles(self, Z: FloatArray, levels: Sequence[float]) -> FloatArray:
        """Of a new measurement's cost, ``(n, n_levels)``."""
        mean, std = self.scale(Z)
        std = np.sqrt(std**2 + self.spread**2 * self.process.noise)
        return self.cost_of(mean[:, None] + std[:, None] * ndtri(np.array(levels)))


def _with_overhead(
    Z: FloatArray, costs: FloatArray, share: float, start: Kernel | None
) -> tuple[float, CostModel]:
    """Log evidence of an overhead, as a share of the least cost, and its model."""
    overhead = share * float(costs.min())
    y = np.log10(costs - overhead)
    mean, spread = float(y.mean()), max(float(y.std()), 0.3)
    data = Data.pooled(Z, ((y - mean) / spread)[:, None])
    kernel = fit_kernel(data, noise_prior=_COST_NOISE_PRIOR, start=start)
    process = GaussianProcess(kernel, data)
    jacobian = -len(y) * math.log(spread) - float(np.log(costs - overhead).sum())
    evidence = float(process.log_marginal_likelihood()[0]) + jacobian
    # A tie goes to no overhead.
    return evidence - 2.0 * (share > 0), CostModel(overhead, process, mean, spread)
