"""The law of the lower edge of runs whose hyperparameters were not chosen well.

Notation
--------
f        log of the law, ``(n,)``; y  log losses; z  logs of the hyperparameters, ``(n, h)``
x        ``(1, log N, log D)``, centred;  W  where the best hyperparameters lie, ``z* = W x``
u        ``z - W x``;  R  lower triangular;  c  height at which the bowl turns outward
sigma    noise of a run, normal;  tau  mean of what a run is above the edge, exponential

``y = f + c log(1 + |R' u|^2 / 2c) + excess + noise``: all runs share one bowl around an optimum
that moves with scale, and whatever the bowl does not explain can only make a run worse. Without
columns of hyperparameters there is no bowl, and the excess is all. The density of the sum of an
exponential and a normal is that of stochastic frontier analysis (Meeusen and van den Broeck 1977,
"Efficiency estimation from Cobb-Douglas production functions with composed error").

What comes out are the runs as they would have been at the edge, with what each is worth there: the
working response and weights of that density, so that a least-squares fit to them is at its optimum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_ndtr

from carbs.analysis.laws.forecast import Family, Member, Runs
from carbs.analysis.laws.usual import OPTIMUM_EXPONENT
from carbs.spaces import FloatArray

_LEAST_WORTH = 0.1
_FAR_ABOVE, _LEAST_ROWS = 0.25, 12  # of log loss over the edge: a run that failed
_LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class EdgePrior:
    """What is usual of untuned runs; ``benchmarks/untuned.py`` compares others on simulated grids.

    Medians and deviations of logs, of log losses.

    Attributes:
        noise: sigma.
        excess: tau, where no bowl explains it; excess_of_bowl: what a bowl leaves.
        curve: diagonal of R.
        turn: c.
        reach: how far above the edge runs tell of the bowl.
    """

    noise: tuple[float, float] = (3e-3, 0.7)
    excess: tuple[float, float] = (0.02, 1.0)
    excess_of_bowl: tuple[float, float] = (4e-3, 0.7)
    curve: tuple[float, float] = (0.12, 0.7)
    turn: float = 0.5
    reach: float = 0.05


USUAL_EDGE = EdgePrior()


@dataclass(frozen=True)
class LowerEdge:
    """Runs as if tuned.

    Attributes:
        y: log losses at the edge, ``(n,)``.
        worth: how much each says about it, 0 to 1, ``(n,)``.
        above: how far each lies above it, in log loss, ``(n,)``.
        failed: rows so far above the edge that they say nothing, ``(m,)``.
        said: how it was found, in words.
    """

    y: FloatArray
    worth: FloatArray
    above: FloatArray
    failed: np.ndarray
    said: str


def lower_edge(
    family: Family,
    member: Member,
    runs: Runs,
    z: FloatArray | None,
    names: tuple[str, ...],
    prior: EdgePrior = USUAL_EDGE,
) -> LowerEdge:
    """Find the edge below runs.

    Args:
        family, member: the law, and the fit that it begins at.
        runs: all that did not fail outright.
        z: logs of their hyperparameters, ``(n, h)``, or none.
        names: of these.
        prior: what is usual.
    """
    if z is not None:
        # No bowl is so steep as to hold what failed: without it, a first edge tells which did.
        first_edge = lower_edge(family, member, runs, None, (), prior)
        least = np.sort(first_edge.above)[min(len(runs.y), _LEAST_ROWS) - 1]
        reach = min(max(prior.reach, float(least)), _FAR_ABOVE)
        near = np.flatnonzero(first_edge.above <= reach)
        failed = np.flatnonzero(first_edge.above > reach)
        if len(failed):
            part = lower_edge(family, member, runs.only(near), z[near], names, prior)
            y, worth, above = runs.y.copy(), np.zeros(len(runs.y)), first_edge.above
            y[near], worth[near], above[near] = part.y, part.worth, part.above
            return replace(
                part,
                y=y,
                worth=worth,
                above=above,
                failed=np.concatenate([failed, near[part.failed]]),
            )
    usual = family.with_usual(member, runs.y)
    first = family.fit(usual, runs).best()
    form, p = family.form(runs.x), len(first)
    free = [i for i in range(p) if i not in member.held]
    n, h = len(runs.y), 0 if z is None else z.shape[1]
    x = np.column_stack([np.ones(n), runs.x])
    pairs = [(i, j) for i in range(h) for j in range(i + 1)]
    k = x.shape[1]
    i_R = h * k
    centred = np.zeros((n, 0)) if z is None else z - np.median(z, axis=0)

    def bowl(shape: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Heights ``(n,)`` and their derivatives by the shape, ``(n, len(shape))``."""
        J = np.zeros((n, len(shape)))
        if not h:
            return np.zeros(n), J
        R = np.zeros((h, h))
        for index, (i, j) in enumerate(pairs):
            R[i, j] = math.exp(shape[i_R + index]) if i == j else shape[i_R + index]
        u = centred - x @ shape[:i_R].reshape(h, k).T
        v = u @ R
        q = np.square(v).sum(axis=1)
        outward = 1 / (1 + 0.5 * q / prior.turn)
        J[:, :i_R] = -((v @ R.T)[:, :, None] * x[:, None, :]).reshape(n, i_R)
        for index, (i, j) in enumerate(pairs):
            J[:, i_R + index] = u[:, i] * v[:, j] * (R[i, j] if i == j else 1.0)
        return np.asarray(prior.turn * np.log1p(0.5 * q / prior.turn)), outward[:, None] * J

    noise, curve, excess = (
        (math.log(median), deviation)
        for median, deviation in (
            prior.noise,
            prior.curve,
            prior.excess_of_bowl if h else prior.excess,
        )
    )
    mean = np.concatenate([np.zeros(i_R), [curve[0] if i == j else 0.0 for i, j in pairs]])
    width = np.concatenate(
        [
            np.tile([1.5, *[OPTIMUM_EXPONENT] * (k - 1)], h),
            [curve[1] if i == j else 0.1 for i, j in pairs],
        ]
    )
    law_mean, law_width = np.zeros(p), np.full(p, np.inf)
    for index, (m, d) in usual.prior.items():
        law_mean[index], law_width[index] = m, d
    lower, upper = family.bounds(runs.y)

    def unpack(theta: FloatArray) -> tuple[FloatArray, FloatArray, float, float]:
        law = first.copy()
        law[free] = theta[: len(free)]
        return law, theta[len(free) : -2], math.exp(theta[-2]), math.exp(theta[-1])

    prior_mean = np.concatenate([law_mean[free], mean, [noise[0], excess[0]]])
    prior_width = np.concatenate([law_width[free], width, [noise[1], excess[1]]])

    def negative(theta: FloatArray) -> tuple[float, FloatArray]:
        law, shape, sigma, tau = unpack(theta)
        values, J_law = form(law[None])
        height, J_bowl = bowl(shape)
        r = runs.y - values[0] - height
        t = r / sigma - sigma / tau
        log_below = log_ndtr(t)
        ratio = np.exp(-0.5 * t * t - 0.5 * _LOG_2PI - log_below)
        density = -math.log(tau) + 0.5 * (sigma / tau) ** 2 - r / tau + log_below
        by_r = ratio / sigma - 1 / tau
        by_sigma = (sigma / tau) ** 2 - ratio * (r / sigma + sigma / tau)
        by_tau = -1 - (sigma / tau) ** 2 + r / tau + ratio * sigma / tau
        J = np.column_stack(
            [-by_r[:, None] * J_law[0][:, free], -by_r[:, None] * J_bowl, by_sigma, by_tau]
        )
        z = (theta - prior_mean) / prior_width
        value = 0.5 * float(z @ z) - float(density @ runs.weights)
        return value, z / prior_width - runs.weights @ J

    bounds = [(lower[i], upper[i]) for i in free] + [(None, None)] * len(mean) + [(-9, -1), (-9, 1)]
    best = min(
        (
            minimize(
                negative,
                start,
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": 1000},
            )
            for start in _starts(
                first[free], [*mean, noise[0], excess[0]], lower[free], upper[free]
            )
        ),
        key=lambda found: float(found.fun),
    ).x
    law, shape, sigma, tau = unpack(best)
    there, (height, _) = form(law[None])[0][0], bowl(shape)
    r = runs.y - there - height
    # The excess of a row is normal around this, cut off at zero.
    t = r / sigma - sigma / tau
    ratio = np.exp(-0.5 * t * t - 0.5 * _LOG_2PI - log_ndtr(t))
    above_bowl = sigma * (t + ratio)
    worth = np.clip(ratio * (t + ratio), _LEAST_WORTH, 1.0)  # 1 - its variance over sigma^2
    y = there + (r - above_bowl) / worth
    # The bowl is known less the higher up.
    worth = worth / (1 + np.square(0.2 * height / sigma))
    above = runs.y - there
    failed = np.flatnonzero(above > _FAR_ABOVE)
    worth[failed] = 0.0
    how = (
        f"a bowl in {', '.join(names)} around an optimum moving with scale and a one-sided error"
        if h
        else "a one-sided error"
    )
    said = (
        f"the law is that of the lower edge of untuned runs, by {how}: they lie "
        f"{100 * float(np.median(runs.y - there)):.2g}% above it (median)"
    )
    return LowerEdge(y, worth, above, failed, said)


def _starts(
    first: FloatArray, rest: list[float], lower: FloatArray, upper: FloatArray
) -> list[FloatArray]:
    low = first.copy()
    low[0] -= 0.03
    return [np.concatenate([np.clip(one, lower, upper), rest]) for one in (first, low)]
