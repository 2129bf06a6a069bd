"""The loss around the Pareto front: a scaling law with a bowl, which continue beyond the sweep.

Notation
--------
z        basic coordinates of a configuration, shape ``(d,)``
c        its scale: log10 of what its cost exceeds a fixed overhead by
s        where it lies beside a reference line m along the front, ``z - m(c)``, along axes on which
         learning rates of any model size compare alike (:func:`carbs.roles.comparable`), ``(d,)``
L        its loss, ``L = E + k 10^(-g c) + sum_i h_i (p_i + q_i c) s_i
         + sum_ij sqrt(h_i h_j) Q_ij s_i s_j + r(z) + noise``
h_i(c)   ``10^(-f_i c)``: how the bowl around the optimum flattens with scale
r        what the formula misses, a Matern-5/2 process that grows towards the cheap runs: a model
         in its first transient follows no law yet, and what it does is not to bend the law

This is a response surface of second order (Box and Wilson 1951, "On the Experimental Attainment of
Optimum Conditions") around a moving point, on a scaling law. For given g and f it is linear in
its coefficients ``w = (E, k, p, q, Q)``, which have Gaussian priors, so that their posterior is
exact (Rasmussen and Williams 2006, "Gaussian Processes for Machine Learning", ch. 2). The forms,
a grid over g, are weighed by their marginal likelihood and by what is usual of g and of the level
that they lead to, and every answer averages over them; f and the amplitudes are at the mode of
it. The optimum at a scale minimises a quadratic: beyond the data it goes on as a straight line in
c, a power law of the cost for parameters on a logarithmic scale, and the loss as a law with an
irreducible level, where a process that only knows of distances would have nothing to say.

Far above the front no quadratic holds: a run counts the less, the further above it came out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.linalg.lapack import dpotrf, dpotri
from scipy.optimize import minimize
from scipy.special import logsumexp, ndtr

from carbs.analysis.front.chart import Chart
from carbs.analysis.front.cost_model import CostModel, Known
from carbs.analysis.laws.usual import COMPUTE_EXPONENT, IRREDUCIBLE_SHARE
from carbs.pareto import most_telling, pareto_front
from carbs.records import Failure, Observation
from carbs.roles import comparable
from carbs.search_space import SearchSpace
from carbs.spaces import ChoiceSpace, FloatArray, LogSpace, MixtureSpace

Judge = Callable[[FloatArray, int], FloatArray]

# The grid of forms.
_EXPONENTS = (
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.12,
    0.14,
    0.16,
    0.18,
    0.2,
    0.23,
    0.26,
    0.3,
    0.35,
    0.4,
    0.5,
    0.6,
    0.75,
)
# For every decade beyond the sweep's best run, intervals are wider by the first share where at most
# so many dimensions are free, and by the other where so many are or more: what is planned is partly
# the law's own mistake, in each of them.
_DOUBTS, _DIMENSIONS = (0.3, 0.65), (6, 8)
# And what is planned comes out worse than the mean by this share of the deviation for each free
# dimension above so many: a hundred runs do not settle twenty, and a plan takes each of them where
# it looks best.
_OPTIMISM, _SETTLED = 0.15, 10
# Of the forms, those with less weight are left out.
_LEAST_WEIGHT = 1e-3
_LN10 = math.log(10)
_LOG_STEPS = np.gradient(np.log(_EXPONENTS))
# Prior deviation of how two hyperparameters interact, over that of each one's own curvature: most
# hardly do, and the pairs are many.
_INTERACTION = 0.5
_CROSS_UNIT = _INTERACTION * math.sqrt(2.0)  # Q is symmetric: of a pair it holds two entries
# A run above the front by the sweep's gain, L(cheap) - L(dear), gets this much more deviation.
_TAPER = 0.5
# Of the cheapest runs no cheaper one tells how far above the front they are, and even one that
# diverged is on it: it rises by no more than so many gains for a decade of cost.
_STEEPEST = 2.0
# How far above the best run a loss counts, in distances of the median from it.
_HOPELESS = 10.0
# Of more runs, the hyperparameters are fitted to as many: a step of that takes their cube.
_N_CLIMBED = 512
# Decades by which r's deviation grows for a decade of cost below the dear runs, which begin at this
# quantile: one check run far above the others leaves these what they were.
_CHEAP, _DEAR = 0.6, 0.9


@dataclass(frozen=True)
class _Form:
    """One g with the posterior of its coefficients.

    Attributes:
        weight: of the form.
        mean: of the coefficients ``(F,)``, with their ``covariance`` ``(F, F)``.
        total: lower Cholesky factor of the runs' whole covariance, ``(n, n)``.
        whitened: that covariance's solution for the runs' distance from the prior, ``(n,)``.
    """

    g: float
    weight: float
    mean: FloatArray
    covariance: FloatArray
    total: FloatArray
    whitened: FloatArray


@dataclass(frozen=True)
class Hyperparameters:
    """Of the surface, at their posterior mode.

    Attributes:
        theta: inverse lengths, ``(d,)``, in basic units.
        bowl, rest, noise: deviations of the bowl's coefficients, of r among the dear runs, and of
            a measurement.
        length: of r, in units of theta.
        fading: f, ``(d,)``.
    """

    theta: FloatArray
    bowl: float
    rest: float
    length: float
    noise: float
    fading: FloatArray

    def scaled(self, factor: float) -> Hyperparameters:
        """The same of losses that are ``factor`` times as large."""
        deviations = {name: factor * getattr(self, name) for name in ("bowl", "rest", "noise")}
        return replace(self, **deviations)


class ResponseSurface:
    """Fitted to runs.

    Args:
        space: of the configurations.
        Z: basic points, ``(n, d)``.
        costs: ``(n,)``.
        losses: to be minimised, ``(n,)``.
        deviations: of losses that are forecasts, ``(n,)``.
        known_cost: as for :meth:`CostModel.fit`.
        like: a surface whose hyperparameters it has; its own by default.
        ended: as for :meth:`CostModel.fit`.
        axes: along which configurations compare, ``(d, d)``; those that are usual by default.
    """

    def __init__(
        self,
        space: SearchSpace,
        Z: FloatArray,
        costs: FloatArray,
        losses: FloatArray,
        deviations: FloatArray | None = None,
        known_cost: Known | None = None,
        like: ResponseSurface | None = None,
        ended: tuple[FloatArray, FloatArray] | None = None,
        axes: FloatArray | None = None,
    ) -> None:
        self.space, self.Z, self.losses = space, Z, losses
        deviations = np.zeros(len(Z)) if deviations is None else deviations
        self.cost: CostModel
        usual = None if like is None else like.cost
        self.cost = CostModel.fit(space, Z, costs, known=known_cost, ended=ended, like=usual)
        self.chart = Chart.of(space, self.cost, Z, losses)
        self.c, self.s = self.chart.beside(Z)
        self.dear = float(np.quantile(self.c, _DEAR))
        self.floor = float(losses.min())
        spread = float(np.median(losses)) - self.floor or float(np.ptp(losses))
        losses = np.minimum(losses, self.floor + _HOPELESS * spread)
        front = pareto_front(self.c, losses)
        on_front = np.interp(self.c, self.c[front], losses[front])
        gain = float(np.quantile(on_front, 0.9)) - self.floor
        self.unit = max(gain, 1e-3 * spread, 1e-9 * abs(self.floor), 1e-300)
        self.y = (losses - self.floor) / self.unit
        dearer = np.maximum(self.c - self.c[:, None], 0.0)
        on_front = np.minimum(
            (on_front - self.floor) / self.unit, (self.y + _STEEPEST * dearer).min(axis=1)
        )
        relative = np.maximum(self.y - on_front, 0.0)
        self.extra = (_TAPER * relative**2) ** 2 + (deviations / self.unit) ** 2
        self.varies = (self.s.std(axis=0) > 1e-9) & (np.arange(Z.shape[1]) != self.chart.driver)
        turned = np.outer(self.varies, self.varies) | np.eye(Z.shape[1], dtype=bool)
        self.axes = np.where(turned, comparable(space) if axes is None else axes, 0.0)
        self.hyper: Hyperparameters
        self.hyper = self._climb() if like is None else like.hyper.scaled(like.unit / self.unit)
        self.forms = self._weigh()

    @classmethod
    def of(
        cls,
        space: SearchSpace,
        observations: Sequence[Observation],
        known_cost: Known | None = None,
        like: ResponseSurface | None = None,
        failures: Sequence[Failure] = (),
        axes: FloatArray | None = None,
    ) -> ResponseSurface:
        """Fitted to observations whose outputs are to be minimised.

        Of failures it learns that their costs would have been more.
        """
        failures = [failure for failure in failures if failure.cost]
        least = np.array([failure.cost for failure in failures])
        return cls(
            space,
            space.encode_all([observation.params for observation in observations]),
            np.array([observation.cost for observation in observations]),
            np.array([observation.output for observation in observations]),
            np.array([observation.output_deviation for observation in observations]),
            known_cost,
            like,
            (space.encode_all([failure.params for failure in failures]), least),
            axes,
        )

    # Features and priors

    def _features(self, c: FloatArray, s: FloatArray, g: float) -> FloatArray:
        """``(n, F)``: E, k, p, q, Q above the diagonal; scaled so that priors are unit."""
        x = c - self.chart.middle
        root = self._root(x)
        t = (s @ self.axes * self.hyper.theta)[:, self.varies] * root
        u = t * root
        law = self._decline(c, g)
        pairs = [t[:, i] * t[:, j] * (1 if i == j else _CROSS_UNIT) for i, j in self._pairs]
        bowl = np.stack([*u.T, *(0.5 * x[:, None] * u).T, *pairs], axis=1) if t.shape[1] else t
        return np.concatenate([np.ones((len(c), 1)), law[:, None], self.hyper.bowl * bowl], axis=1)

    def _decline(self, c: FloatArray, g: float) -> FloatArray:
        """A law that falls from 1 to 0 over the sweep's costs, ``(n,)``."""
        last, decades = float(self.c.max()), float(np.ptp(self.c))
        return np.asarray(np.expm1(-g * _LN10 * (c - last)) / math.expm1(g * _LN10 * decades))

    def _root(self, x: FloatArray) -> FloatArray:
        """``(n, d)``: square roots of h."""
        return np.asarray(10.0 ** (-0.5 * self.hyper.fading[self.varies] * x[:, None]))

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        d = int(self.varies.sum())
        return [(i, j) for i in range(d) for j in range(i, d)]

    def _prior(self) -> tuple[FloatArray, FloatArray]:
        """Means and deviations of the coefficients.

        The first two are the loss at the dear end of the line, and how far it fell up to there:
        whatever g is, by about a unit.
        """
        d = int(self.varies.sum())
        n_features = 2 + 2 * d + len(self._pairs)
        mean, deviation = np.zeros(n_features), np.ones(n_features)
        mean[1] = 1.0
        return mean, deviation

    def _rest(self, c: FloatArray, s: FloatArray, other_c: FloatArray, other_s: FloatArray):  # type: ignore[no-untyped-def]
        h = self.hyper
        near, other = ((x @ self.axes * h.theta)[:, self.varies] / h.length for x in (s, other_s))
        a = np.concatenate([near, c[:, None]], axis=1)
        b = np.concatenate([other, other_c[:, None]], axis=1)
        r = np.sqrt(5 * np.maximum(((a[:, None] - b[None]) ** 2).sum(axis=2), 0.0))
        size = h.rest**2 * np.outer(self._larger(c), self._larger(other_c))
        return np.asarray(size * (1 + r + r * r / 3) * np.exp(-r))

    def _larger(self, c: FloatArray) -> FloatArray:
        """How many times as large r is as among the dear runs and beyond, ``(n,)``."""
        return np.asarray(10.0 ** (_CHEAP * np.maximum(self.dear - c, 0.0)))

    # The fit

    def _climb(self) -> Hyperparameters:
        """At the mode of the evidence for a few g, each from the best so far."""
        d = int(self.varies.sum())
        prior_mean = np.array(
            [math.log(0.4)] * d + [math.log(0.3), math.log(0.05), 0.5, math.log(0.02)] + [0.1] * d
        )
        prior_sd = np.array([1.2] * d + [1.0, 1.2, 0.7, 1.2] + [0.1] * d)
        chosen = most_telling(self.c, self.losses, _N_CLIMBED)

        def objective(v: FloatArray, law: FloatArray) -> tuple[float, FloatArray]:
            value, gradient = self.misfit(v, law, chosen)
            off = (v - prior_mean) / prior_sd
            return value + 0.5 * float(off @ off), gradient + off / prior_sd

        best: tuple[float, FloatArray] | None = None
        for g in (0.2, 0.1, 0.37):
            fit = minimize(
                objective,
                prior_mean if best is None else best[1],
                args=(self._decline(self.c[chosen], g),),
                jac=True,
                method="L-BFGS-B",
                bounds=[(math.log(1e-3), math.log(30.0))] * (d + 3)
                + [(math.log(1e-4), 1.0)]
                + [(-0.2, 1.0)] * d,
                options={"maxiter": 80 if best is None else 30},
            )
            if best is None or fit.fun < best[0]:
                best = float(fit.fun), fit.x
        assert best is not None
        values = np.exp(best[1][: d + 4])
        full, fading = np.zeros(self.s.shape[1]), np.zeros(self.s.shape[1])
        full[self.varies], fading[self.varies] = values[:d], best[1][d + 4 :]
        bowl, rest, length, noise = (float(value) for value in values[d:])
        return Hyperparameters(full, bowl, rest, length, noise, fading)

    def misfit(
        self, v: FloatArray, law: FloatArray, chosen: NDArray[np.intp]
    ) -> tuple[float, FloatArray]:
        """Negative log evidence of the chosen runs (but for a constant), and its gradient by ``v``.

        ``v``, ``(2 d + 4,)``, has the logarithms of theta, bowl, rest, length and noise, and f.
        With ``t = s theta``, ``p = t sqrt(h)`` and ``q = t h`` the bowl's covariance is ``q q'``
        for what moves and ``(p p')^2`` for what bends, elementwise, crossed terms weighed down.
        """
        d = int(self.varies.sum())
        x = self.c[chosen] - self.chart.middle
        bowl, rest, length, noise = np.exp(v[d : d + 4])
        t = (self.s[chosen] @ self.axes)[:, self.varies] * np.exp(v[:d])
        root = 10.0 ** (-0.5 * v[d + 4 :] * x[:, None])
        p, q = t * root, t * root**2
        moves, across = 1 + 0.25 * np.outer(x, x), p @ p.T
        crossed = _INTERACTION**2
        bend = (1 - crossed) * np.square(p) @ np.square(p).T + crossed * across**2
        bowls = moves * (q @ q.T) + bend
        squares = np.square(t).sum(axis=1)
        near = np.maximum(squares[:, None] + squares - 2 * t @ t.T, 0.0) / length**2
        r = np.sqrt(5 * (near + np.square(x[:, None] - x)))
        larger = self._larger(self.c[chosen])
        size = np.outer(larger, larger)
        rests = size * (1 + r + r * r / 3) * np.exp(-r)
        K = 1 + np.outer(law, law) + bowl**2 * bowls + rest**2 * rests
        K[np.diag_indices(len(x))] += noise**2 + self.extra[chosen] + 1e-9
        L, info = dpotrf(K, lower=1)
        if info:
            return 1e10, np.zeros_like(v)
        residual = self.y[chosen] - law
        weights = cho_solve((L, True), residual)
        inverse, _ = dpotri(L, lower=1)
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        value = 0.5 * float(residual @ weights) + float(np.log(L.diagonal()).sum())
        G = 0.5 * (inverse - np.outer(weights, weights))  # of the value by K
        by_near = -5 / 6 * rest**2 * G * size * (1 + r) * np.exp(-r)
        by_p = (1 - crossed) * p * (G @ np.square(p)) + crossed * (G * across) @ p
        by_p, by_q = 4 * bowl**2 * by_p, 2 * bowl**2 * (G * moves) @ q
        by_t = 4 / length**2 * (by_near.sum(axis=1)[:, None] * t - by_near @ t)
        by_t += by_p * root + by_q * root**2
        return value, np.concatenate(
            [
                (by_t * t).sum(axis=0),
                [
                    2 * bowl**2 * np.vdot(G, bowls),
                    2 * rest**2 * np.vdot(G, rests),
                    -2 * np.vdot(by_near, near),
                    2 * noise**2 * G.trace(),
                ],
                -_LN10 * x @ (0.5 * by_p * p + by_q * q),
            ]
        )

    def _weigh(self) -> list[_Form]:
        rest = self._rest(self.c, self.s, self.c, self.s)
        rest[np.diag_indices(len(self.y))] += self.hyper.noise**2 + self.extra + 1e-9
        rest_factor = cholesky(rest, lower=True)
        prior_mean, prior_sd = self._prior()
        found = []
        logs = []
        for g, log_step in zip(_EXPONENTS, _LOG_STEPS, strict=True):
            Phi = self._features(self.c, self.s, g)
            A = solve_triangular(rest_factor, Phi * prior_sd, lower=True)
            b = solve_triangular(rest_factor, self.y - Phi @ prior_mean, lower=True)
            precision = np.eye(Phi.shape[1]) + A.T @ A
            factor = cholesky(precision, lower=True)
            u = cho_solve((factor, True), A.T @ b)
            evidence = -0.5 * (b @ b - (A.T @ b) @ u) - np.log(factor.diagonal()).sum()
            mean = prior_mean + prior_sd * u
            covariance = cho_solve((factor, True), np.eye(len(u))) * np.outer(prior_sd, prior_sd)
            falls = ndtr(mean[1] / math.sqrt(covariance[1, 1]))  # k > 0
            evidence += math.log(max(falls, 1e-300)) + math.log(log_step)
            logs.append(evidence + self._log_usual(g, mean[:2], covariance[:2, :2]))
            found.append((g, mean, covariance, Phi))
        weights = np.exp(np.array(logs) - logsumexp(logs))
        forms = []
        for weight, (g, mean, covariance, Phi) in zip(weights, found, strict=True):
            if weight < _LEAST_WEIGHT:
                continue
            scaled = Phi * prior_sd
            total = cholesky(rest + scaled @ scaled.T, lower=True)
            residual = self.y - Phi @ prior_mean
            forms.append(
                _Form(
                    g,
                    float(weight),
                    mean,
                    covariance,
                    total,
                    cho_solve((total, True), residual),
                )
            )
        kept = sum(form.weight for form in forms)
        return [
            _Form(f.g, f.weight / kept, f.mean, f.covariance, f.total, f.whitened) for f in forms
        ]

    def _log_usual(self, g: float, mean: FloatArray, covariance: FloatArray) -> float:
        """Log density of a law's exponent and, of a loss that was never negative, of its E.

        As the laws of compute have them (:mod:`carbs.analysis.laws.usual`), that of E as a normal
        one of the same mean and deviation.

        Args:
            mean, covariance: of the first two coefficients.
        """
        usual, deviation = COMPUTE_EXPONENT
        density = -0.5 * ((math.log(g) - usual) / deviation) ** 2
        if self.floor <= 0:
            return density
        far = np.array([1.0, float(self._decline(np.array([1e9]), g)[0])])
        irreducible = self.floor + self.unit * float(far @ mean)
        usual, deviation = IRREDUCIBLE_SHARE
        level = self.floor * math.exp(usual + deviation**2 / 2)
        spread = level * math.sqrt(math.expm1(deviation**2))
        total = math.hypot(spread, self.unit * math.sqrt(far @ covariance @ far))
        return density - 0.5 * ((irreducible - level) / total) ** 2 - math.log(total)

    # What it says

    def law(self, c: FloatArray, s: FloatArray) -> FloatArray:
        """Mean loss of the formula alone, without r, ``(n,)``."""
        losses = [f.weight * (self._features(c, s, f.g) @ f.mean) for f in self.forms]
        return np.asarray(self.floor + self.unit * np.sum(losses, axis=0))

    def predict(self, Z: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Means and deviations of the loss by form, ``(f, n)`` each, noise excluded; weights."""
        c, s = self.chart.beside(Z)
        prior_mean, prior_sd = self._prior()
        cross_rest = self._rest(c, s, self.c, self.s)
        means, deviations = [], []
        for form in self.forms:
            own = self._features(self.c, self.s, form.g) * prior_sd
            phi = self._features(c, s, form.g)
            cross = cross_rest + (phi * prior_sd) @ own.T
            half = solve_triangular(form.total, cross.T, lower=True)
            variance = np.square(phi * prior_sd).sum(axis=1)
            variance = variance + np.square(self.hyper.rest * self._larger(c))
            variance = variance - np.square(half).sum(axis=0)
            means.append(phi @ prior_mean + cross @ form.whitened)
            deviations.append(np.sqrt(np.maximum(variance, 1e-12)))
        weights = np.array([form.weight for form in self.forms])
        return (
            self.floor + self.unit * np.array(means),
            self.unit * np.array(deviations),
            weights,
        )

    def tells(self, z: FloatArray, target: FloatArray) -> float:
        """The share of the target's variance that a measurement at ``z`` would take away."""
        Z = np.stack([z, target])
        c, s = self.chart.beside(Z)
        _, prior_sd = self._prior()
        cross_rest = self._rest(c, s, self.c, self.s)
        means, _, weights = self.predict(Z)
        centered = means - weights @ means
        total = np.einsum("f,fi,fj->ij", weights, centered, centered)
        for form in self.forms:
            own = self._features(self.c, self.s, form.g) * prior_sd
            phi = self._features(c, s, form.g) * prior_sd
            half = solve_triangular(form.total, (cross_rest + phi @ own.T).T, lower=True)
            covariance = phi @ phi.T + self._rest(c, s, c, s) - half.T @ half
            total = total + form.weight * self.unit**2 * covariance
        return float(total[0, 1] ** 2 / ((total[0, 0] + self.noise**2) * total[1, 1]))

    @property
    def noise(self) -> float:
        """Deviation of a measured loss."""
        return self.unit * self.hyper.noise

    def quantiles(self, Z: FloatArray, levels: Sequence[float]) -> FloatArray:
        """Of a new measurement at each point, ``(n, n_levels)``.

        Beyond the best run they are wider than the posterior, the further the more: no law is the
        true one, and within the sweep that does not show. Dearer runs that came out worse have not
        followed the front any further. Where many dimensions are free, they lie higher as well.
        """
        means, deviations, weights = self.predict(Z)
        beyond = np.maximum(self.cost.scale(Z)[0] - self.c[self.losses.argmin()], 0.0)
        doubt = np.interp(self.varies.sum(), _DIMENSIONS, _DOUBTS)
        middle, widening = weights @ means, 1 + doubt * beyond
        means = middle + widening * (means - middle)
        deviations = np.sqrt((widening * deviations) ** 2 + self.noise**2)
        means = means + _OPTIMISM * max(int(self.varies.sum()) - _SETTLED, 0) * deviations
        low = (means - 8 * deviations).min(axis=0)[:, None] * np.ones(len(levels))
        high = (means + 8 * deviations).max(axis=0)[:, None] * np.ones(len(levels))
        for _ in range(60):
            at = (low + high) / 2
            scores = (at[None] - means[:, :, None]) / deviations[:, :, None]
            below = np.einsum("f,fnl->nl", weights, ndtr(scores)) > np.array(levels)
            high, low = np.where(below, at, high), np.where(below, low, at)
        return np.asarray((low + high) / 2)

    def best(
        self,
        c: FloatArray,
        n_draws: int | None,
        rng: np.random.Generator | None = None,
        judge: Judge | None = None,
    ) -> FloatArray:
        """s at the optimum of each scale: of draws ``(S, m, d)``, or of the mean ``(1, m, d)``.

        The bowl is minimised by coordinate descent between the chart's bounds, from the line, for
        every choice of categories that was tried; which of these is best the judge says, from
        draws of the loss ``(S, n)`` at their points ``(n, d)``, or else the formula: categories may
        cross over in a way that no bowl has.
        """
        x = np.asarray(c) - self.chart.middle
        d = int(self.varies.sum())
        linear, moving, curved = [], [], []
        if n_draws is None:
            p = np.zeros((1, len(x), d))
            Q = np.zeros((1, len(x), d, d))
            for form in self.forms:
                p0, q0, Q0 = self._bowl(form.mean[None])
                p += form.weight * (p0[:, None] + x[None, :, None] * q0[:, None])
                Q += form.weight * Q0[:, None]
        else:
            assert rng is not None
            counts = rng.multinomial(n_draws, [form.weight for form in self.forms])
            for form, count in zip(self.forms, counts, strict=True):
                if not count:
                    continue
                root = np.linalg.cholesky(form.covariance + 1e-12 * np.eye(len(form.mean)))
                w = form.mean + rng.standard_normal((count, len(form.mean))) @ root.T
                p0, q0, Q0 = self._bowl(w)
                linear.append(p0)
                moving.append(q0)
                curved.append(Q0)
            p0, q0, Q0 = (np.concatenate(parts) for parts in (linear, moving, curved))
            p = p0[:, None] + x[None, :, None] * q0[:, None]
            Q = np.broadcast_to(Q0[:, None], (n_draws, len(x), d, d))
        root = self._root(x)
        p, Q = p * root**2, Q * root[:, :, None] * root[:, None, :]
        theta = self.hyper.theta[self.varies]
        turn = self.axes[np.ix_(self.varies, self.varies)] * theta / theta[:, None]
        p, Q = p @ turn.T, turn @ Q @ turn.T
        t = self._descend(np.asarray(c), p, Q, judge)
        s = np.zeros((*t.shape[:2], self.s.shape[1]))
        s[:, :, self.varies] = t / theta
        return s

    def _bowl(self, w: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """p, q ``(S, d)`` and symmetric Q ``(S, d, d)``, in units of theta."""
        d = int(self.varies.sum())
        p, q = w[:, 2 : 2 + d], 0.5 * w[:, 2 + d : 2 + 2 * d]
        Q = np.zeros((len(w), d, d))
        for k, (i, j) in enumerate(self._pairs):
            value = w[:, 2 + 2 * d + k] * (1 if i == j else _CROSS_UNIT / 2)
            Q[:, i, j] = Q[:, j, i] = value
        return p, q, Q

    def _descend(
        self, c: FloatArray, p: FloatArray, Q: FloatArray, judge: Judge | None
    ) -> FloatArray:
        theta = self.hyper.theta[self.varies]
        low, high = (bound[:, self.varies] * theta for bound in self._limits(c))
        columns = np.flatnonzero(self.varies)
        diagonal = np.einsum("smii->smi", Q)
        found, values = [], []
        for assignment in self._assignments():
            t = np.zeros_like(p)
            free = []
            for k, column in enumerate(columns.tolist()):
                if column in assignment:
                    t[:, :, k] = assignment[column] * theta[k]
                else:
                    free.append(k)
            for _ in range(30):
                for k in free:
                    slope = p[:, :, k] + 2 * np.einsum("smj,smj->sm", Q[:, :, k], t)
                    slope = slope - 2 * diagonal[:, :, k] * t[:, :, k]
                    curvature = diagonal[:, :, k]
                    bottom = -slope / (2 * np.where(curvature > 1e-9, curvature, 1.0))
                    at_low = slope * low[:, k] + curvature * low[:, k] ** 2
                    at_high = slope * high[:, k] + curvature * high[:, k] ** 2
                    end = np.where(at_low < at_high, low[:, k], high[:, k])
                    inside = np.clip(bottom, low[:, k], high[:, k])
                    t[:, :, k] = np.where(curvature > 1e-9, inside, end)
            found.append(t)
            values.append(np.einsum("smi,smi->sm", p, t) + np.einsum("smi,smij,smj->sm", t, Q, t))
        T = np.array(found)  # (a, S, m, d)
        if len(T) == 1:
            return np.asarray(T[0])
        if judge is None:
            chosen = np.argmin(values, axis=0)
        else:
            middle = np.zeros((len(T), len(c), self.s.shape[1]))
            middle[:, :, self.varies] = np.median(T, axis=1) / theta
            points = self.chart.points(np.tile(c, len(T)), middle.reshape(-1, middle.shape[2]))
            judged = judge(points, p.shape[0]).reshape(p.shape[0], len(T), len(c))
            chosen = np.argmin(judged, axis=1)  # (S, m)
        return np.asarray(np.take_along_axis(T, chosen[None, :, :, None], axis=0)[0])

    def _limits(self, c: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Bounds of s at each scale, ``(m, d)``: near what was tried, and within the space."""
        line = self.chart.line(c)
        lowest, highest = np.full(self.space.n_dims, -np.inf), np.full(self.space.n_dims, np.inf)
        far = np.array([[-1e6], [1e6]])
        for param in self.space.params:
            if not isinstance(param.space, (ChoiceSpace, MixtureSpace)):
                i = self.space.slices[param.name].start
                least, most = param.space.limits()
                ends = param.space.snap(far, param.search_center)[:, 0]
                is_open = least <= 0 and isinstance(param.space, LogSpace)
                lowest[i] = -np.inf if is_open else ends[0]
                highest[i] = ends[1] if math.isfinite(most) else np.inf
        low, high = (
            np.clip(np.broadcast_to(bound, line.shape), lowest - line, highest - line)
            for bound in (self.chart.low, self.chart.high)
        )
        return low, high

    def _assignments(self) -> list[dict[int, float]]:
        """Every tried choice of categories: basic dimension to s. One empty one without choices."""
        dims = [
            i
            for param in self.space.params
            if isinstance(param.space, ChoiceSpace)
            for i in range(*self.space.slices[param.name].indices(self.space.n_dims))
        ]
        if not dims:
            return [{}]
        return [dict(zip(dims, row, strict=True)) for row in np.unique(self.s[:, dims], axis=0)]
