"""What a configuration costs, and what dearer ones will: a product of powers beside an overhead.

Notation
--------
z        basic coordinates of a configuration, shape ``(d,)``
c        scale: log10 of what its cost exceeds the overhead by
e        exponents: decades of cost for a decade of each dimension, ``(d,)``
n        decades of the model's size, over the runs' mean, by the exponents of its roles
h        what small models waste: they leave the machine idle
r        what the powers miss, a Matern-5/2 process
w        how much of the logarithm of a run's cost its scale is: ``10^c / (overhead + 10^c)``

    log10 cost = log10(overhead + 10^c) + noise
    c = level + sum_i e_i u_i + h(n) + r(z),  u_i = z_i in decades
    h(n) = log10(1 + 10^(s (at - n)))

Costs have this form: operations are products of sizes, and what seconds add to them is an overhead
and a little unevenness. So e has a normal prior around what a parameter's role says
(:mod:`carbs.analysis.front.growth`), which is zero for most, with a deviation for each dimension
that is fitted (automatic relevance determination, Rasmussen and Williams 2006, "Gaussian Processes
for Machine Learning", sec. 5.1): of many hyperparameters that leave the cost alone, none takes part
in it by chance, and noise is not taken for a function of all of them. r is small beforehand, so
that far from the runs the powers go on.

A token of a small model costs more than its operations say: below the size ``at`` the cost falls
as the size to the power of ``1 - s`` only, and far above it h vanishes. A line through small models
would go on with too small a power. ``at`` and ``s`` are fitted with the deviations, from several
starts, and h is kept where the runs are likelier with it.

What is measured is linearised around the posterior mean of c, again and again (Gauss and Newton's
method; Rasmussen and Williams, sec. 3.4), for a grid of overheads. A noisy cost may lie below the
overhead: taken from the costs before their logarithm, it could not, and what it lacks would bend
the powers.

Where more is known of the cost, as an expression or from the operations that the runs counted, its
logarithm k(z) is added to c, and all else is what that misses: e is zero beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.special import expit, log_ndtr, ndtri

from carbs.roles import COST_EXPONENTS, SIZE_EXPONENTS, TOKEN_EXPONENTS, role_of
from carbs.search_space import Role, SearchSpace
from carbs.spaces import FloatArray, LogSpace
from carbs.threads import on_one_thread

# The overhead as a share of the cheap runs' cost (the quantile of them at this level); those around
# the best are refined, at the most so many times, while the evidence tells them apart.
_CHEAP = 0.1
_OVERHEADS = (0.0, 0.2, 0.4, 0.55, 0.7, 0.8, 0.87, 0.93, 1.0, 1.1)
_N_REFINED, _N_REFINEMENTS, _APART = 3, 8, 0.05
_N_LINEARISED = 3
# Of more runs, as many are fitted, evenly spread over costs: a fit takes their cube.
_N_FITTED = 160
# A run that ended early, further than so many deviations from what is believed of its cost, either
# says nothing of it or ended for another reason.
_FAR = 3.0
# Of the log evidence, relative.
_PRECISION = 1e-6
# Where small models begin, in decades from the middle of the runs, and how steep their waste is:
# normal priors, and bounds. It is looked for from several sizes.
_WASTE, _SPREADS_OF_WASTE = (0.0, 0.7), (1.0, 0.3)
_WASTE_BOUNDS = ((-3.0, 3.0), (0.2, 1.0))
_STARTS = (-1.0, 0.0, 1.0)
# What is beside the powers has to be this much likelier (nats): a tie goes to none.
_DOUBT = 2.0
# A run whose scale is less of its cost than this says nothing of it.
_LEAST_SHARE = 1e-3
# Priors of deviations, by their logarithms. Of an exponent from what the role says, and from zero:
_EXPONENT, _OTHER_EXPONENT, _SPREAD_OF_EXPONENTS = 0.01, 0.005, 1.5
# from zero too, where no parameter is known to be the tokens: then something else drives the cost.
_UNNAMED_EXPONENT = 0.1
# from what is known of the cost:
_MISSED_EXPONENT = 0.005
# of r and of one measurement, in decades of cost.
_REST, _SPREAD_OF_REST = 0.03, 1.0
_NOISE, _SPREAD_OF_NOISE = 0.02, 1.5
# What their fit begins with at the least: from smaller ones it would leave everything to r.
_FIRST = 0.1
_LEAST_VARIANCE = 1e-10
# No cost is foretold better than this, in decades.
_LEAST_NOISE = 1e-3

Known = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True)
class Waste:
    """h: ``at`` and ``s``."""

    at: float
    steepness: float

    def __call__(self, n: FloatArray) -> FloatArray:
        return np.asarray(np.logaddexp(0.0, self._exponent(n)) / math.log(10))

    def slope(self, n: float) -> float:
        return float(-self.steepness * expit(self._exponent(n)))

    def gradient(self, n: FloatArray) -> FloatArray:
        """By ``at`` and ``s``, ``(2, n)``."""
        at_work = expit(self._exponent(n))
        return np.stack([self.steepness * at_work, (self.at - n) * at_work])

    def _exponent(self, n: FloatArray | float) -> FloatArray:
        return np.asarray(math.log(10) * self.steepness * (self.at - n))


@dataclass(frozen=True)
class CostModel:
    """``cost = overhead + 10^c``.

    Attributes:
        overhead: in the unit of cost.
        level: mean of the runs' c.
        middle, units: ``u = units * (z - middle)``, both ``(d,)``.
        exponents: what the roles say, ``(d,)``.
        deviations: of the exponents, of r and of a measurement, ``(d + 2,)``.
        widths: r's lengthscales, in basic units, ``(d,)``.
        U: of the runs, ``(n, d)``.
        known: k, of basic points ``(n, d)``, shape ``(n,)``; None for nothing.
        sizes, waste: decades of n for one of each dimension, ``(d,)``; h, None for none.
        shares: w of the runs, ``(n,)``.
        factor, weights: the linearised runs' covariance's lower Cholesky factor, ``(n, n)``, and
            its solution for their distance from the prior, ``(n,)``.
    """

    overhead: float
    level: float
    middle: FloatArray
    units: FloatArray
    exponents: FloatArray
    deviations: FloatArray
    widths: FloatArray
    U: FloatArray
    shares: FloatArray
    factor: FloatArray
    weights: FloatArray
    known: Known | None
    sizes: FloatArray
    waste: Waste | None

    @classmethod
    @on_one_thread
    def fit(
        cls,
        space: SearchSpace,
        Z: FloatArray,
        costs: FloatArray,
        exponents: Mapping[Role, float] = COST_EXPONENTS,
        known: Known | None = None,
        ended: tuple[FloatArray, FloatArray] | None = None,
        like: CostModel | None = None,
        has_overhead: bool = True,
    ) -> CostModel:
        """The overhead at its posterior mode: of a grid, then of finer ones around the best.

        Args:
            space: of the configurations.
            Z: basic points, ``(n, d)``.
            costs: or another quantity that is a product of powers, ``(n,)``, positive.
            exponents: what is known of them by a parameter's role.
            known: log10 of what they are known to be nearly proportional to.
            ended: points of runs that ended too early, ``(m, d)``, and what they had cost by then,
                ``(m,)``: they would have cost more.
            like: a fit to more runs, whose overhead it has, and a waste near its own.
            has_overhead: counts, of operations or of parameters, have none.
        """
        runs = _Runs(Z, costs, np.zeros(len(Z)))
        fit = _Fit(space, runs, exponents, known)
        overheads = _OVERHEADS if has_overhead else (0.0,)
        model = fit.best(overheads) if like is None else fit.near(like)
        told = None if ended is None else model._censored(*ended)
        if told is None or not len(told.Z):
            return model
        both = _Runs(*(np.concatenate(parts) for parts in zip(runs, told, strict=True)))
        return _Fit(space, both, exponents, known).near(model)

    def _censored(self, Z: FloatArray, least: FloatArray) -> _Runs:
        """Measurements that say what it says that costs were more than the least, ``(m,)``.

        Laplace's approximation of a probit likelihood (Rasmussen and Williams, sec. 3.4) around
        what is believed. One that is far from likely ended for another reason.
        """
        y, std, noise = self._log_costs(Z)
        c = np.log10(np.maximum(least, 1e-300))
        score = (y - c) / noise
        says = (score < _FAR) & (y - c > -_FAR * np.hypot(std, noise))
        Z, y, score = Z[says], y[says], score[says]
        slope = np.exp(-0.5 * score**2 - log_ndtr(score)) / math.sqrt(2 * math.pi)
        bend = slope * (score + slope)
        costs = 10.0 ** (y + noise / (score + slope))
        return _Runs(Z, costs, noise**2 * (1 / bend - 1))

    def scale(self, Z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and deviation of c, each ``(n,)``, noise excluded."""
        U = self.units * (Z - self.middle)
        variances = np.square(self.deviations[:-1])
        slopes, rest = variances[:-1], variances[-1]
        covariance = 1 + (U * slopes) @ self.U.T + rest * _matern(U, self.U, self.widths)
        covariance *= self.shares
        whitened = solve_triangular(self.factor, covariance.T, lower=True)
        variance = 1 + np.square(U) @ slopes + rest - np.square(whitened).sum(axis=0)
        mean = self.level + U @ self.exponents + covariance @ self.weights
        if self.waste is not None:
            mean += self.waste(U @ self.sizes)
        if self.known is not None:
            mean += self.known(Z)
        return mean, np.sqrt(np.maximum(variance, _LEAST_VARIANCE))

    def mean_exponents(self) -> FloatArray:
        """Posterior means of e, with the slopes of h and k in the middle of the runs, ``(d,)``."""
        slopes = np.square(self.deviations[:-2]) * (self.U.T @ (self.shares * self.weights))
        if self.waste is not None:
            slopes += self.waste.slope(0.0) * self.sizes
        if self.known is not None:
            steps = 0.5 * np.eye(len(self.middle)) / self.units
            slopes += self.known(self.middle + steps) - self.known(self.middle - steps)
        return np.asarray(self.exponents + slopes)

    def log10(self, Z: FloatArray) -> FloatArray:
        """Of the median cost at basic points ``(n, d)``, shape ``(n,)``."""
        return np.asarray(np.log10(self.cost_of(self.scale(Z)[0])))

    def scale_of(self, cost: float) -> float:
        return math.log10(max(cost - self.overhead, 1e-3 * cost))

    def cost_of(self, c: FloatArray | float) -> FloatArray:
        return np.asarray(self.overhead + 10.0 ** np.minimum(np.asarray(c), 300.0))

    def quantiles(self, Z: FloatArray, levels: Sequence[float]) -> FloatArray:
        """Of a new measurement's cost, ``(n, n_levels)``."""
        middle, std, noise = self._log_costs(Z)
        std = np.hypot(std, noise)
        return np.asarray(10.0 ** np.minimum(middle[:, None] + np.outer(std, ndtri(levels)), 300.0))

    def _log_costs(self, Z: FloatArray) -> tuple[FloatArray, FloatArray, float]:
        """Of costs: medians and deviations, ``(n,)`` each, noise excluded; and a measurement's."""
        mean, std = self.scale(Z)
        share = 1 / (1 + self.overhead * 10.0 ** np.clip(-mean, -300, 300))
        noise = max(float(self.deviations[-1]), _LEAST_NOISE)
        return np.log10(self.cost_of(mean)), share * std, noise


class _Runs(NamedTuple):
    """Points, costs, and the variances of their logarithms beyond a measurement's."""

    Z: FloatArray
    costs: FloatArray
    variances: FloatArray


@dataclass(frozen=True)
class _Found:
    """``share`` is the overhead's, of the cheap runs' cost."""

    evidence: float
    share: float
    model: CostModel


def _evidence(found: _Found) -> float:
    return found.evidence


class _Fit:
    """Fits for several overheads and wastes, each from where the last one ended."""

    def __init__(
        self,
        space: SearchSpace,
        runs: _Runs,
        exponents: Mapping[Role, float],
        known: Known | None,
    ) -> None:
        if len(runs.Z) > _N_FITTED:
            kept = np.linspace(0, len(runs.Z) - 1, _N_FITTED).round().astype(np.intp)
            kept = np.sort(np.argsort(runs.costs, kind="stable")[kept])
            runs = _Runs(*(part[kept] for part in runs))
        Z, costs, self._extra = runs
        self._y, self._middle, self._known = np.log10(costs), Z.mean(axis=0), known
        self.cheap = float(np.quantile(costs, _CHEAP))
        self._k = np.zeros(len(Z)) if known is None else known(Z)
        d = space.n_dims
        self._units, self._exponents, deviations = np.ones(d), np.zeros(d), np.full(d, np.nan)
        self.sizes = np.zeros(d)
        has_tokens = any(role_of(param) in TOKEN_EXPONENTS for param in space.params)
        other = _OTHER_EXPONENT if has_tokens else _UNNAMED_EXPONENT
        for param in space.params:
            own, role = space.slices[param.name], role_of(param)
            is_size = isinstance(param.space, LogSpace) and role in exponents
            if isinstance(param.space, LogSpace):
                self._units[own] = param.space.scale
            self._exponents[own] = exponents[role] if is_size and known is None else 0.0
            self.sizes[own] = SIZE_EXPONENTS.get(role, 0.0) if is_size else 0.0
            deviations[own] = _EXPONENT if is_size else other
        self._U = self._units * (Z - self._middle)
        # In u, as all else: half the root of the dimension, in the box of the runs.
        self._widths = 0.5 * math.sqrt(d) * np.maximum(np.ptp(Z, axis=0), 1.0) * self._units
        self._correlation = _matern(self._U, self._U, self._widths)
        if known is not None:
            deviations = np.minimum(deviations, _MISSED_EXPONENT)
        self._prior = np.log([*deviations, _REST, _NOISE])
        spreads = [_SPREAD_OF_EXPONENTS] * d + [_SPREAD_OF_REST, _SPREAD_OF_NOISE]
        self._spreads = np.array(spreads)
        self._theta = np.maximum(self._prior, math.log(_FIRST))
        self._n = self._U @ self.sizes

    def best(self, overheads: Sequence[float]) -> CostModel:
        """With a waste where that is likelier."""
        best = self.best_overhead(None, overheads)
        if self.sizes.any():
            starts = [Waste(at, _WASTE[1]) for at in _STARTS]
            shares = sorted({0.0, best.share})
            found = max((self.with_both(o, w) for o in shares for w in starts), key=_evidence)
            if found.evidence > best.evidence:
                best = self.best_overhead(found.model.waste, overheads[::2])
        return best.model

    def near(self, model: CostModel) -> CostModel:
        """With the overhead of a fit to much the same runs, and a waste near its own."""
        self._theta = np.log(model.deviations)
        return self.with_both(model.overhead / self.cheap, model.waste).model

    def best_overhead(self, waste: Waste | None, shares: Sequence[float]) -> _Found:
        """Of a grid, then of finer ones around the best."""
        fits = {share: self.with_both(share, waste) for share in shares}
        for _ in range(_N_REFINEMENTS):
            tried = sorted(fits)
            i = max(range(len(tried)), key=lambda i: fits[tried[i]].evidence)
            around = [fits[share].evidence for share in tried[max(i - 1, 0) : i + 2]]
            if i == 0 or max(around) - min(around) < _APART:
                break
            above = tried[i + 1] if i + 1 < len(tried) else 1.2 * tried[i]
            for share in np.linspace(tried[i - 1], above, _N_REFINED + 2)[1:-1].tolist():
                if share not in fits:
                    fits[share] = self.with_both(share, waste)
        return max(fits.values(), key=_evidence)

    def with_both(self, share: float, waste: Waste | None) -> _Found:
        """That overhead, and a waste near the one that is given."""
        from scipy.optimize import minimize  # slow to import

        overhead = share * self.cheap
        scales = np.log10(np.maximum(10.0**self._y - overhead, 0.1 * 10.0**self._y))
        level = float((scales - self._k).mean())
        powers = level + self._k + self._U @ self._exponents
        theta, bounds = self._theta, [(-14.0, 3.0)] * len(self._prior)
        if waste is not None:
            theta = np.array([*theta, waste.at, waste.steepness])
            bounds += _WASTE_BOUNDS
        for _ in range(_N_LINEARISED if share else 1):
            total = overhead + 10.0 ** np.minimum(scales, 300.0)
            shares = np.maximum(10.0 ** np.minimum(scales, 300.0) / total, _LEAST_SHARE)
            y = self._y - np.log10(total) + shares * (scales - powers)
            linear = _Linear(shares, self._U, self._correlation, self._extra)
            fit = minimize(
                self._objective,
                theta,
                args=(y, linear),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"maxiter": 100, "ftol": _PRECISION},
            )
            theta = fit.x
            self._theta, waste = self._parts(theta)
            variances = np.exp(2 * self._theta)
            factor, _ = dpotrf(linear.covariance(variances), lower=1, clean=1)
            wasted = self._wasted(waste)
            weights = cho_solve((factor, True), y - shares * wasted)
            scales = powers + wasted + linear.between(variances) @ (shares * weights)
        if waste is not None:
            level -= float(waste(self._n).mean())
        model = CostModel(
            overhead,
            level,
            self._middle,
            self._units,
            self._exponents,
            np.exp(self._theta),
            self._widths,
            self._U,
            shares,
            factor,
            weights,
            self._known,
            self.sizes,
            waste,
        )
        doubt = _DOUBT * ((share > 0) + (waste is not None))
        return _Found(-float(fit.fun) - doubt, share, model)

    def _parts(self, theta: FloatArray) -> tuple[FloatArray, Waste | None]:
        """The deviations' logarithms ``(d + 2,)``, and what follows them."""
        k = len(self._prior)
        return theta[:k], Waste(*theta[k:].tolist()) if len(theta) > k else None

    def _wasted(self, waste: Waste | None) -> FloatArray:
        """h of the runs, over their mean; 0 for none. Shape ``(n,)``."""
        h = np.zeros(len(self._n)) if waste is None else waste(self._n)
        return np.asarray(h - h.mean())

    def _objective(
        self, theta: FloatArray, y: FloatArray, linear: _Linear
    ) -> tuple[float, FloatArray]:
        """Negative log posterior of the deviations' logarithms and of h, and its gradient."""
        logs, waste = self._parts(theta)
        variances = np.exp(2 * logs)
        L, info = dpotrf(linear.covariance(variances), lower=1)
        if info:
            return math.inf, np.zeros_like(theta)
        y = y - linear.shares * self._wasted(waste)
        weights = cho_solve((L, True), y)
        inverse, _ = dpotri(L, lower=1)
        inverse = np.tril(inverse)
        inverse += np.tril(inverse, -1).T
        prior, spreads = self._prior, self._spreads
        if waste is not None:
            prior, spreads = np.append(prior, _WASTE), np.append(spreads, _SPREADS_OF_WASTE)
        U, off = linear.U, (theta - prior) / spreads
        value = -0.5 * y @ weights - np.log(L.diagonal()).sum() - 0.5 * off @ off
        gradient = -off / spreads
        rest = linear.correlation
        by_variance = np.empty_like(logs)
        by_variance[:-2] = np.square(U.T @ weights) - np.einsum("ij,ij->j", U, inverse @ U)
        by_variance[-2] = weights @ rest @ weights - np.vdot(inverse, rest)
        by_variance[-1] = weights @ weights - inverse.diagonal().sum()
        gradient[: len(logs)] += variances * by_variance
        if waste is not None:
            slopes = waste.gradient(self._n)
            slopes -= slopes.mean(axis=1, keepdims=True)
            gradient[len(logs) :] += slopes @ (linear.shares * weights)
        return -float(value), -gradient


class _Linear:
    """Covariances of ``w c``, from those of c, and of its measurements."""

    def __init__(
        self, shares: FloatArray, U: FloatArray, correlation: FloatArray, extra: FloatArray
    ) -> None:
        self.shares, self.constant, self.extra = shares, np.outer(shares, shares), extra
        self.U, self.correlation = shares[:, None] * U, self.constant * correlation
        self._plain = U, correlation

    def covariance(self, variances: FloatArray) -> FloatArray:
        """Of the linearised measurements, ``(n, n)``."""
        K = self.constant + (self.U * variances[:-2]) @ self.U.T + variances[-2] * self.correlation
        K[np.diag_indices(len(K))] += variances[-1] + self.extra + _LEAST_VARIANCE
        return np.asarray(K)

    def between(self, variances: FloatArray) -> FloatArray:
        """Of c at the runs, ``(n, n)``, noise excluded."""
        U, correlation = self._plain
        return np.asarray(1 + (U * variances[:-2]) @ U.T + variances[-2] * correlation)


def _matern(U: FloatArray, other: FloatArray, widths: FloatArray) -> FloatArray:
    a, b = U / widths, other / widths
    squares = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    r = np.sqrt(5 * np.maximum(squares, 0.0))
    return np.asarray((1 + r * (1 + r / 3)) * np.exp(-r))
