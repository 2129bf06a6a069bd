"""The law of the lower edge of runs whose hyperparameters were not chosen well.

Notation
--------
f        log of the law, ``(n,)``; y  log losses; z  logs of the hyperparameters, ``(n, h)``
sigma    noise of a run, normal;  tau  mean of what a run is above the edge, exponential

With columns of hyperparameters the edge is the bottom of the bowl that the runs near it share
(:mod:`carbs.analysis.laws.bowl`): each is taken down by how high the bowl is where it lies.

Without them ``y = f + excess + noise``: whatever was not chosen well can only make a run worse. The
density of the sum of an exponential and a normal is that of stochastic frontier analysis (Meeusen
and van den Broeck 1977, "Efficiency estimation from Cobb-Douglas production functions with composed
error").

What comes out are the runs as they would have been at the edge, with what each is worth there: of
the one-sided error, the working response and weights of its density, so that a least-squares fit to
them is at its optimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_ndtr

from carbs.analysis.laws.bowl import RunsAtScales, fit_bowl, n_coefficients
from carbs.analysis.laws.forecast import Family, Member, Runs
from carbs.spaces import FloatArray

_LEAST_WORTH = 0.1
_FAR_ABOVE = 0.25  # of log loss over the edge: a run that failed
# Of log loss above the optimum, of the runs that tell of the bowl; how far its height is off, as a
# share, and what of the noise is the least.
_WINDOW, _OFF, _LEAST_NOISE = 0.02, 0.2, 1e-3
_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class EdgePrior:
    """What is usual of untuned runs; ``benchmarks/untuned.py`` compares others on simulated grids.

    Medians and deviations of logs, of log losses.

    Attributes:
        noise: sigma.
        excess: tau.
    """

    noise: tuple[float, float] = (3e-3, 0.7)
    excess: tuple[float, float] = (0.04, 1.0)


USUAL_EDGE = EdgePrior()


@dataclass(frozen=True)
class LowerEdge:
    """Runs as if tuned.

    Attributes:
        y: log losses at the edge, ``(n,)``.
        worth: how much each says about it, 0 to 1, ``(n,)``.
        above: how far each lies above it, in log loss, ``(n,)``.
        said: how it was found, in words.
    """

    y: FloatArray
    worth: FloatArray
    above: FloatArray
    said: str

    @property
    def failed(self) -> np.ndarray:
        """Rows so far above the edge that they say nothing, ``(m,)``."""
        return np.flatnonzero(self.above > _FAR_ABOVE)


def edge_of_bowl(runs: Runs, z: FloatArray, names: tuple[str, ...]) -> LowerEdge:
    """The edge below runs with known hyperparameters.

    Args:
        runs: all that did not fail outright.
        z: logs of their hyperparameters, ``(n, h)``.
        names: of these.

    Raises:
        ValueError: fewer runs than the bowl has coefficients.
    """
    n, h = z.shape
    least = n_coefficients(h, 1 + runs.x.shape[1])
    if n < least:
        raise ValueError(
            f"a bowl in {', '.join(names)} has {least} coefficients and needs as many runs, but "
            f"there are {n}: name fewer hyperparameters, or say tuned=False without any"
        )
    data = RunsAtScales.of(z, runs.x, runs.y)
    bowl = fit_bowl(data, data.near(_WINDOW))
    y, worth = runs.y.copy(), np.zeros(n)
    y[bowl.rows] -= bowl.heights
    worth[bowl.rows] = 1 / (1 + np.square(_OFF * bowl.heights / max(bowl.noise, _LEAST_NOISE)))
    worth[data.above > _FAR_ABOVE] = 0.0
    how = f"a bowl in {', '.join(names)} around an optimum moving with scale"
    return LowerEdge(
        y, worth, data.above, _said(f"{how}, of the {(worth > 0).sum()} runs near it", data.above)
    )


def one_sided_edge(
    family: Family, member: Member, runs: Runs, prior: EdgePrior = USUAL_EDGE
) -> LowerEdge:
    """The edge below runs of which nothing is known but that each can only be worse.

    Args:
        family, member: the law, and the fit that it begins at.
        runs: all that did not fail outright.
        prior: what is usual.
    """
    usual = family.with_usual(member, runs.y)
    first = family.fit(usual, runs).best()
    form, p = family.form(runs.x), len(first)
    free = [i for i in range(p) if i not in member.held]
    noise, excess = (
        (math.log(median), deviation) for median, deviation in (prior.noise, prior.excess)
    )
    law_mean, law_width = np.zeros(p), np.full(p, np.inf)
    for index, (m, d) in usual.prior.items():
        law_mean[index], law_width[index] = m, d
    lower, upper = family.bounds(runs.y)

    def unpack(theta: FloatArray) -> tuple[FloatArray, float, float]:
        law = first.copy()
        law[free] = theta[:-2]
        return law, math.exp(theta[-2]), math.exp(theta[-1])

    prior_mean = np.concatenate([law_mean[free], [noise[0], excess[0]]])
    prior_width = np.concatenate([law_width[free], [noise[1], excess[1]]])

    def negative(theta: FloatArray) -> tuple[float, FloatArray]:
        law, sigma, tau = unpack(theta)
        values, J_law = form(law[None])
        r = runs.y - values[0]
        t = r / sigma - sigma / tau
        log_below = log_ndtr(t)
        ratio = np.exp(-0.5 * t * t - 0.5 * _LOG_2PI - log_below)
        density = -math.log(tau) + 0.5 * (sigma / tau) ** 2 - r / tau + log_below
        by_r = ratio / sigma - 1 / tau
        by_sigma = (sigma / tau) ** 2 - ratio * (r / sigma + sigma / tau)
        by_tau = -1 - (sigma / tau) ** 2 + r / tau + ratio * sigma / tau
        J = np.column_stack([-by_r[:, None] * J_law[0][:, free], by_sigma, by_tau])
        off = (theta - prior_mean) / prior_width
        value = 0.5 * float(off @ off) - float(density @ runs.weights)
        return value, off / prior_width - runs.weights @ J

    bounds = [(lower[i], upper[i]) for i in free] + [(-9, -1), (-9, 1)]
    best = min(
        (
            minimize(
                negative,
                np.concatenate([start, [noise[0], excess[0]]]),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": 1000},
            )
            for start in _starts(first[free], lower[free], upper[free])
        ),
        key=lambda found: float(found.fun),
    ).x
    law, sigma, tau = unpack(best)
    there = form(law[None])[0][0]
    above = runs.y - there
    # The excess of a row is normal around this, cut off at zero.
    t = above / sigma - sigma / tau
    ratio = np.exp(-0.5 * t * t - 0.5 * _LOG_2PI - log_ndtr(t))
    excess_of = sigma * (t + ratio)
    worth = np.clip(ratio * (t + ratio), _LEAST_WORTH, 1.0)  # 1 - its variance over sigma^2
    y = there + (above - excess_of) / worth
    worth[above > _FAR_ABOVE] = 0.0
    return LowerEdge(y, worth, above, _said("a one-sided error", above))


def _said(how: str, above: FloatArray) -> str:
    return (
        f"the law is that of the lower edge of untuned runs, by {how}: they lie "
        f"{100 * float(np.median(above)):.2g}% above it (median)"
    )


def _starts(first: FloatArray, lower: FloatArray, upper: FloatArray) -> list[FloatArray]:
    low = first.copy()
    low[0] -= 0.03
    return [np.clip(one, lower, upper) for one in (first, low)]
