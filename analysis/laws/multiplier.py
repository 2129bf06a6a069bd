"""How much more compute one recipe needs than another for the same loss.

Two recipes (data sets, architectures, optimizers) with laws ``L_a(C)`` and ``L_b(C)``: at a compute
C of the first, the multiplier is ``C_b / C`` with ``L_b(C_b) = L_a(C)``. It is a function of scale:
a recipe that wins small can lose large, and where the laws cross it is one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from carbs.analysis.laws.power import ComputeLaw
from carbs.analysis.laws.power_fits import fit_compute_law
from carbs.analysis.laws.rows import check_level
from carbs.analysis.laws.shown import Shown
from carbs.pareto import pareto_front
from carbs.spaces import FloatArray

# The second recipe's compute is sought this many decades beyond what either spent.
_REACH = 6.0
_N_GRID = 2000


@dataclass(frozen=True, repr=False)
class Multiplier(Shown):
    """Compute that the second recipe needs, in multiples of the first's, for the same loss.

    Attributes:
        compute: of the first recipe, shape ``(m,)``.
        median, low, high: of the multiplier, ``(m,)``; infinite where the second never gets there.
        crossings: computes at which the laws themselves cross, rising, ``(n,)``; within a factor of
            100 beyond what was measured.
        crossing_probability: share of the resamples in which they cross there.
        level: of the interval.
    """

    compute: FloatArray
    median: FloatArray
    low: FloatArray
    high: FloatArray
    crossings: FloatArray
    crossing_probability: float
    level: float

    def __repr__(self) -> str:
        i = len(self.compute) // 2
        return (
            f"Multiplier({self.median[i]:.3g} [{self.low[i]:.3g}, {self.high[i]:.3g}] at "
            f"{self.compute[i]:.3g}, from {self.compute[0]:.3g} to {self.compute[-1]:.3g})"
        )

    def summary(self) -> pd.DataFrame:
        """One row a compute."""
        return pd.DataFrame(
            {"compute": self.compute, "median": self.median, "low": self.low, "high": self.high}
        )


def compute_multiplier(
    compute_a: ArrayLike,
    loss_a: ArrayLike,
    compute_b: ArrayLike,
    loss_b: ArrayLike,
    *,
    at: ArrayLike | None = None,
    level: float = 0.9,
    n_resamples: int = 200,
    seed: int = 0,
) -> Multiplier:
    """Compare two sets of runs by the laws through their Pareto fronts.

    Args:
        compute_a, loss_a: of the first recipe's runs, ``(n,)``.
        compute_b, loss_b: of the second's, in the same units.
        at: computes of the first at which to compare; by default over what both spent, and ten
            times beyond.
        level: of the interval.
        n_resamples, seed: of the laws' bootstraps.

    Raises:
        ValueError: too few runs on a front, rows that are not finite and positive, or a level
            not between 0 and 1.
    """
    check_level(level)
    laws = [
        _front_law(compute_a, loss_a, n_resamples, seed),
        _front_law(compute_b, loss_b, n_resamples, seed + 1),
    ]
    spent = np.concatenate([law.compute for law in laws])
    if at is None:
        at = np.geomspace(max(law.compute.min() for law in laws), 10 * spent.max(), 25)
    compute = np.asarray(at, dtype=float)
    grid = np.geomspace(spent.min() / 10**_REACH, spent.max() * 10**_REACH, _N_GRID)
    n = min(len(law.resamples) for law in laws)
    draws = np.array(
        [_ratio(laws[0].resamples[i], laws[1].resamples[i], compute, grid) for i in range(n)]
    )
    tail = (1 - level) / 2
    low, median, high = np.quantile(draws, [tail, 0.5, 1 - tail], axis=0, method="nearest")
    near = grid[(grid >= spent.min()) & (grid <= 100 * spent.max())]
    best = [np.array([law.E, law.k, law.g]) for law in laws]
    crossed = [len(_crossings(laws[0].resamples[i], laws[1].resamples[i], near)) for i in range(n)]
    return Multiplier(
        compute,
        median,
        low,
        high,
        _crossings(best[0], best[1], near),
        float(np.mean([count > 0 for count in crossed])),
        level,
    )


def _front_law(compute: ArrayLike, loss: ArrayLike, n_resamples: int, seed: int) -> ComputeLaw:
    C, L = np.asarray(compute, dtype=float), np.asarray(loss, dtype=float)
    chosen = pareto_front(C, L) if np.isfinite(C).all() and np.isfinite(L).all() else slice(None)
    return fit_compute_law(C[chosen], L[chosen], n_resamples, seed)


def _loss(coefficients: FloatArray, compute: FloatArray) -> FloatArray:
    E, k, g = coefficients[:3]
    return np.asarray(E + k * compute**-g)


def _ratio(a: FloatArray, b: FloatArray, compute: FloatArray, grid: FloatArray) -> FloatArray:
    """Multipliers at each compute, by inverting the second law on a grid (its loss falls)."""
    wanted = _loss(a, compute)
    falling = _loss(b, grid)
    found = np.exp(np.interp(-wanted, -falling, np.log(grid), right=np.inf))
    return np.asarray(found / compute)


def _crossings(a: FloatArray, b: FloatArray, grid: FloatArray) -> FloatArray:
    ahead = np.sign(_loss(a, grid) - _loss(b, grid))
    places = np.flatnonzero(ahead[1:] * ahead[:-1] < 0)
    return np.sqrt(grid[places] * grid[places + 1])
