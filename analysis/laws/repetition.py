"""How much less tokens count that are repeated, from runs that repeat them.

R* is that of :func:`carbs.analysis.laws.power.effective_tokens`: the epochs after which one more is
worth 1/e of new data (Muennighoff et al. 2023, "Scaling Data-Constrained Language Models", eq. 5).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
from scipy.interpolate import PchipInterpolator

from carbs.analysis.laws.forecast import Family, Runs
from carbs.analysis.laws.power import REPETITION, effective_tokens
from carbs.spaces import FloatArray

# Deviation of log R*. Runs that are off by a ten-thousandth are exact.
_REPETITION_PRIOR, _LEAST_OBJECTIVE = 0.8, 0.5e-8


def fit_repetition(
    family: Family, N: FloatArray, D: FloatArray, U: FloatArray, runs: Runs
) -> tuple[float, tuple[float, float]]:
    """R* with its 90% interval: its profile under the published form, times what is usual.

    The noise of the runs is integrated out, so that n runs with an objective S have a likelihood of
    ``S^(-n/2)``.

    Args:
        family: the law of N and D.
        N, D, U: parameters, tokens and unique ones of each run, ``(n,)``.
        runs: the same runs, as if all tokens were unique.
    """
    usual = family.with_usual(family.published, runs.y)
    n = len(np.unique(runs.group))
    start: FloatArray | None = None

    def density(log_r: float) -> float:
        nonlocal start
        x = np.log(np.stack([N, effective_tokens(D, U, math.exp(log_r))], axis=1))
        fits = family.fit(usual, replace(runs, x=x - x.mean(axis=0)), starts=start)
        start = fits.best()[None]
        least = max(float(fits.objective.min()), _LEAST_OBJECTIVE * len(runs.y))
        off = (log_r - math.log(REPETITION)) / _REPETITION_PRIOR
        return -0.5 * n * math.log(least) - 0.5 * off**2

    # Over all that may be, and closely where it is likeliest.
    at = math.log(REPETITION) + 2.5 * _REPETITION_PRIOR * np.linspace(-1, 1, 9)
    found = np.array([density(log_r) for log_r in at])
    for _ in range(3):
        best, step = at[found.argmax()], np.diff(at).min()
        more = best + step * np.array([-0.67, -0.33, 0.33, 0.67])
        order = np.argsort(np.concatenate([at, more]))
        found = np.concatenate([found, [density(log_r) for log_r in more]])[order]
        at = np.concatenate([at, more])[order]
    fine = np.unique(np.concatenate([np.linspace(a, b, 60) for a, b in itertools.pairwise(at)]))
    weight = np.exp(PchipInterpolator(at, found - found.max())(fine)) * np.gradient(fine)
    below = np.cumsum(weight) / weight.sum()
    low, middle, high = np.exp(np.interp([0.05, 0.5, 0.95], below, fine)).tolist()
    return middle, (low, high)
