"""Candidates around the Pareto front, and the score that picks one: gain for cost.

Notation
--------
c        natural logarithm of cost; ``c_1 < ... < c_m`` along the front
y        warped loss, standardised; ``y_1 > ... > y_m`` along the front
cap      log of the largest cost worth reaching

A run of cost ``c`` and loss ``y`` adds to the area dominated in (c, y)

    max(c_1 - c', 0) (y_0 - y)+  +  sum_j  |[max(c_j, c'), c_{j+1}]| (y_j - y)+

with ``c_{m+1}`` a little above the cap, ``y_0`` the loss at the search centre and ``c' = max(c,
floor)``: what does worse than the centre is worth nothing, and being much cheaper than it is no
merit of its own. Cost is nearly a function of the configuration, so the expectation needs only the
loss to be random: each term is a segment's length times an ordinary expected improvement (the
two-dimensional case of Emmerich et al. 2006). In the warped loss a scaling law is a straight line,
so that each decade of cost counts alike.

The score is the logarithm of that expectation, per ``cost ** cost_exponent``, times the
probabilities of success and of staying under the cap. What will hardly succeed comes last.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import erfcx, log_ndtr

from carbs.pareto import pareto_front
from carbs.search_space import AllowedPoints, SearchSpace
from carbs.spaces import FloatArray
from carbs.surrogate import Surrogate

logger = logging.getLogger(__name__)

# How far beyond the cap the area goes on: what is found at the cap is what the search is for, and
# a segment that ended there would be worth the less the nearer it began.
_BEYOND_CAP = 0.3
# Without a cap, how far beyond the dearest run a front is worth extending: half a decade.
_REACH = 0.5 * math.log(10)
# The front is worth something down to half a decade below the centre's cost, and over at least two
# decades below the cap, even where the search starts at a dear centre.
_BELOW_CENTER = 0.5 * math.log(10)
_DEPTH = 2 * math.log(10)
# Where the centre is dearer than the cap, the loss worth nothing: so far above the worst one seen.
_ABOVE_WORST = 1.0
# What is less likely to succeed than this, with the edge where it most likely lies, comes after all
# else: next to a front on which nothing is to be gained any more, a gain beyond it would always
# be worth the try.
_LEAST_SUCCESS = 0.25
_UNLIKELY = 1e3
# Discrete spaces of so many points are looked at whole.
_N_ENUMERATED = 2000
# Off the score of a point that was tried before: below all that were not.
_TRIED = 1e6
_N_LOCAL, _N_GLOBAL, _N_KEPT, _N_REFINED, _N_ROUNDS = 768, 128, 16, 16, 5


class Score(Protocol):
    def __call__(self, Z: FloatArray) -> FloatArray: ...


@dataclass(frozen=True)
class FrontImprovement:
    """Log expected growth of the dominated area, for each unit of cost to a power.

    Attributes:
        front_log_costs: shape ``(m,)``, rising.
        front_outputs: warped losses, shape ``(m,)``, falling.
        reference_output: a loss that is worth nothing.
        log_floor: below it, being cheaper counts no more.
        log_cap: of the dearest run wanted; the area ends a little beyond.
        has_cap: whether crossing ``log_cap`` is forbidden, or just not rewarded.
        cost_exponent: between 0 (area for each trial) and 1 (area for each unit of cost).
        boldness: how many times the deviations of the loss count.
        is_center_beyond_cap: whether the loss worth nothing is not the search centre's, which costs
            more than any run may.
    """

    surrogate: Surrogate
    front_log_costs: FloatArray
    front_outputs: FloatArray
    reference_output: float
    log_floor: float
    log_cap: float
    has_cap: bool
    cost_exponent: float
    boldness: float = 1.0
    is_center_beyond_cap: bool = False

    @classmethod
    def of(
        cls,
        surrogate: Surrogate,
        log_costs: FloatArray,
        outputs: FloatArray,
        center: FloatArray,
        max_cost: float | None,
        cost_exponent: float,
        boldness: float = 1.0,
    ) -> FrontImprovement:
        """The front is that of the surrogate's means at the points seen: noise is not progress."""
        log_cap = math.log(max_cost) if max_cost is not None else float(log_costs.max()) + _REACH
        center_log_cost = float(surrogate.log_cost(center[None, :])[0][0])
        reference_output = float(surrogate.warped_output(center[None, :])[0][0])
        is_beyond = center_log_cost > log_cap
        if is_beyond:
            # What a run under the cap is worth, a centre above it does not say.
            reference_output = max(reference_output, float(outputs.max())) + _ABOVE_WORST
        front = pareto_front(log_costs, outputs)
        front = front[outputs[front] < reference_output]
        return cls(
            surrogate,
            log_costs[front],
            outputs[front],
            reference_output,
            min(center_log_cost - _BELOW_CENTER, log_cap - _DEPTH),
            log_cap,
            max_cost is not None,
            cost_exponent,
            boldness,
            is_beyond,
        )

    def __call__(self, Z: FloatArray) -> FloatArray:
        """Shape ``(q,)`` for basic points ``(q, d)``."""
        log_cost, cost_std = self.surrogate.log_cost(Z)
        mean, std = self.surrogate.warped_output(Z)
        std = self.boldness * std
        starts = np.append(-np.inf, self.front_log_costs)
        ends = np.append(self.front_log_costs, self.log_cap + _BEYOND_CAP)
        levels = np.append(self.reference_output, self.front_outputs)
        counted = np.maximum(log_cost, self.log_floor)
        lengths = np.maximum(ends - np.maximum(starts, counted[:, None]), 0.0)  # (q, m + 1)
        inside = lengths > 0
        gains = ((levels - mean[:, None]) / std[:, None])[inside]
        terms = np.full(inside.shape, -np.inf)
        terms[inside] = _log_improvement(gains) + np.log(lengths[inside])
        # A candidate beyond all segments has no terms.
        largest = np.maximum(terms.max(axis=1), -1e300)
        with np.errstate(divide="ignore"):
            sums = np.log(np.exp(terms - largest[:, None]).sum(axis=1))
        area = largest + sums + np.log(std)
        score = area - self.cost_exponent * counted
        success, likeliest = self.surrogate.success_chances(Z)
        score += np.log(np.maximum(success, 1e-300))
        score -= _UNLIKELY * np.maximum(_LEAST_SUCCESS - likeliest, 0.0)
        if self.has_cap:
            spread = np.hypot(cost_std, self.surrogate.cost_noise())
            score += log_ndtr((self.log_cap - log_cost) / spread)
        return np.asarray(score)


def _log_improvement(gains: FloatArray) -> FloatArray:
    """Logarithm of ``u Phi(u) + phi(u)``, the expected improvement in units of the deviation.

    Far below zero the two cancel: there it is ``phi(u)`` times a bracket in the scaled
    complementary error function, and at last ``phi(u) / u^2`` (Ament et al. 2023, "Unexpected
    Improvements to Expected Improvement for Bayesian Optimization", eq. 9).
    """
    near = np.maximum(gains, -1.0)
    log_density = -0.5 * np.square(gains) - 0.5 * math.log(2 * math.pi)
    direct = np.exp(-0.5 * np.square(near)) / math.sqrt(2 * math.pi) + near * np.exp(log_ndtr(near))
    below = np.clip(gains, -1e5, -1.0)
    bracket = 1 + below * math.sqrt(math.pi / 2) * erfcx(-below / math.sqrt(2))
    far = log_density + np.where(
        gains > -1e4, np.log(np.maximum(bracket, 1e-16)), -2 * np.log(np.maximum(-gains, 1.0))
    )
    return np.asarray(np.where(gains > -1.0, np.log(direct), far))


@dataclass(frozen=True)
class TrustBox:
    """Where the next candidate may lie: at most a margin beyond what has done well so far.

    The surrogate continues its trends for ever, and a space needs no bounds; this keeps the search
    from following a trend to where nothing good has been seen near. It grows with each success, in
    proportion to how far what did well already reaches: a scale that was misstated is outgrown. The
    next whole number is always in it, however small the scale.

    Attributes:
        low, high: shape ``(d,)``.
    """

    low: FloatArray
    high: FloatArray

    @classmethod
    def around(
        cls, space: SearchSpace, good_Z: FloatArray, margin: float, growth: float
    ) -> TrustBox:
        """Beyond the good points by ``margin``, or by ``growth`` times their extent, if larger."""
        low, high = good_Z.min(axis=0), good_Z.max(axis=0)
        margins = np.maximum(margin, growth * (high - low))
        next_low, next_high = space.next_values(low, high)
        return cls(np.minimum(low - margins, next_low), np.maximum(high + margins, next_high))

    def bring_in(self, Z: FloatArray, parents: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Redraw coordinates outside between the parent's and the edge, so that none pile up."""
        t = rng.random(Z.shape)
        Z = np.where(self.low > Z, parents + t * (self.low - parents), Z)
        return np.asarray(np.where(self.high < Z, parents + t * (self.high - parents), Z))


def maximize(
    score: Score,
    space: SearchSpace,
    parents: FloatArray,
    box: TrustBox,
    known: FloatArray,
    rng: np.random.Generator,
) -> FloatArray:
    """The best basic point found, shape ``(d,)``, and one that is not known wherever there is one.

    Candidates are drawn around the parents (the front) at radii over two orders of magnitude, some
    of them along few dimensions, and some anywhere in the box; the best are refined by ever smaller
    steps. Every candidate is snapped to a configuration before it is scored. Only those that the
    constraints allow are kept; where few are, the refinement closes in on the parents. A small
    discrete space is enumerated instead; once all of it was tried, a parent is repeated.

    Args:
        parents: basic points to search around, shape ``(p, d)``.
        box: that candidates stay inside of.
        known: points that were tried or are pending, shape ``(n, d)``: a configuration is repeated
            only when no other is left.
    """
    allowed = AllowedPoints(space)
    tried = set(keys(known))

    def rated(Z: FloatArray) -> FloatArray:
        is_tried = np.array([key in tried for key in keys(Z)], dtype=bool)
        return np.asarray(score(Z) - _TRIED * is_tried)

    every = space.all_points(_N_ENUMERATED)
    if every is not None:
        order = np.argsort(-rated(every), kind="stable")
        best_z = every[allowed.first(every, order, 1)[0]]
        if keys(best_z[None, :])[0] not in tried:
            return np.asarray(best_z)
        logger.warning("all configurations have been tried: those on the front are repeated")
        return np.asarray(parents[np.argmax(score(parents))])
    n_dims = space.n_dims
    origins = parents[rng.integers(len(parents), size=_N_LOCAL)]
    radii = 10 ** rng.uniform(-2.0, 0.3, size=(_N_LOCAL, 1))
    few = rng.random((_N_LOCAL, n_dims)) < rng.choice([0.3, 1.0], size=(_N_LOCAL, 1))
    local = origins + radii * few * rng.standard_normal((_N_LOCAL, n_dims))
    wide = rng.uniform(box.low, box.high, size=(_N_GLOBAL, n_dims))
    candidates = space.snap(np.concatenate([box.bring_in(local, origins, rng), wide]))
    if space.constraints:  # a last resort: the centre is always allowed
        candidates = np.concatenate([candidates, parents, space.center[None, :]])
    scores = rated(candidates)
    for step in range(_N_ROUNDS):
        best = allowed.first(candidates, np.argsort(-scores, kind="stable"), _N_KEPT)
        candidates, scores = candidates[best], scores[best]
        radius = 0.3 * 0.5**step
        origins = np.repeat(candidates, _N_REFINED, axis=0)
        moves = radius * rng.standard_normal(origins.shape)
        moves *= rng.random(origins.shape) < 0.5
        refined = space.snap(box.bring_in(origins + moves, origins, rng))
        candidates = np.concatenate([candidates, refined])
        scores = np.concatenate([scores, rated(refined)])
    best = allowed.first(candidates, np.argsort(-scores, kind="stable"), 1)
    return np.asarray(candidates[best[0]])


def keys(Z: FloatArray) -> list[bytes]:
    """One for each basic point of ``(n, d)``, the same for those that differ by rounding alone."""
    return [row.tobytes() for row in np.round(Z, 9) + 0.0]
