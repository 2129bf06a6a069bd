"""Forecasts with honest intervals: a law, and what no law tells of the runs.

The forms themselves are listed in :mod:`carbs.analysis.laws.power_fits`.

Notation
--------
C        compute of a run, shape ``(n,)``;  x  what a law depends on, in centred logs, ``(n, k)``
y        log loss, shape ``(n,)``
theta    coefficients of the form f, ``(p,)``
s, a     noise of one run, and how far runs lie off the form; both of log loss
g        what the form misses, ``sum_d (a r_d)^2 Matern_3/2`` over directions d of x;
         ``g = a Phi u``, with u standard normal, ``(m,)``

``y = f(x; theta) + g(x) + s noise``. What is wrong with the interval of one fitted law is that it
supposes the law. No form holds exactly: runs of nearby compute lie off the curve together, and the
cheap runs, which are many, would decide coefficients that they know nothing about. With g beside
the form, many runs at one place tell no more than that place, coefficients that the runs do not
tell stay at what is usual, and an interval grows with the distance from the runs (a Gaussian
process on the residuals, as Kennedy and O'Hagan 2001, "Bayesian calibration of computer models").

Theta and u are at their posterior mode under a Huber loss, which holds for what is expected of
theta as for runs: where many runs contradict it, it yields. Around the mode is the Gaussian of its
curvature; s and a are averaged over a grid, each by its evidence. What is usual is a
:class:`Prior`, chosen by how well published runs kept back are predicted (``docs/laws.md``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
from scipy.special import stdtrit

from carbs.analysis.laws.fitting import Fits, Form, descend, stacked
from carbs.spaces import FloatArray

_DELTA = 2.0  # of the Huber loss of a forecast, in units of the noise
# How far s and a may lie from what is usual: deviations of their logs, and the grid's steps. Where
# the highest s is likelier than all others the grid goes on, up to so many times the median of what
# a usual fit leaves, which a few wild runs do not move.
_SCALE_WIDTH = 1.0
_STEPS = np.array([-1.5, -0.75, 0.0, 0.75, 1.5])
_MOST_AT_END, _MOST_MEDIANS = 0.5, 3.0
_LEAST_SHARE = 1e-3  # of a point of the grid
_KNOTS_A_LENGTH, _MOST_KNOTS = 4, 16
_MAX_STEPS = 80
# Of more rows than that fewer resamples will do: each is that much better determined.
_MANY_ROWS, _LEAST_RESAMPLES = 200, 10
# Noise of one run, and how many runs that guess is worth.
_USUAL_NOISE, _USUAL_NOISE_WORTH = 2e-3, 2.0


def affordable(n_resamples: int, n_rows: int, least: int = _LEAST_RESAMPLES) -> int:
    """How many resamples of so many rows are worth their time."""
    return min(n_resamples, max(least, n_resamples * _MANY_ROWS // n_rows))


@dataclass(frozen=True)
class Prior:
    """What a law expects before any run says something: (median, deviation of the log).

    Attributes:
        term: ``A N^-alpha`` and ``B D^-beta`` over E, at 1e9 parameters and 2e10 tokens.
        exponent: alpha.
        ratio: beta over alpha.
        noise: s, a median.
        misfit: a, a median.
        length: decades of compute after which g is another.
        across: r of the direction across compute, in which tokens a parameter change.
        cheap: g grows as ``C^(-cheap/2)`` towards the cheap runs.
    """

    term: tuple[float, float] = (0.35, 0.4)
    exponent: tuple[float, float] = (0.3, 0.2)
    ratio: tuple[float, float] = (1.0, 0.3)
    noise: float = 3e-3
    misfit: float = 2e-3
    length: float = 1.0
    across: float = 2.0
    cheap: float = 0.12


PRIOR = Prior()


@dataclass(frozen=True)
class Member:
    """One way to fit a form as people publish it.

    Attributes:
        held: coefficients that do not vary, by index.
        prior: mean and deviation of coefficients that have a prior, by index.
        delta: of the Huber loss.
    """

    held: Mapping[int, float] = field(default_factory=dict)
    prior: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    delta: float = 3e-3


@dataclass(frozen=True)
class Family:
    """The form of one law.

    Attributes:
        form: x ``(n, k)`` -> the form at these runs.
        bounds: y -> (lower, upper), each ``(p,)``.
        starts: y -> where descents begin, ``(b, p)``.
        published: the fit that gives a law its coefficients.
        usual: y -> mean and deviation of coefficients before any run says something, by index:
            where the runs do not tell what is published, and as vague as people's fits differ.
        expected: (prior, runs) -> how far coefficients are from what is expected of the forecast's,
            in units of its width.
        directions: in which g moves, ``(j, k)``, the first that of compute; the others are across.
        tail: degrees of freedom of an error of the forecast.
    """

    form: Callable[[FloatArray], Form]
    bounds: Callable[[FloatArray], tuple[FloatArray, FloatArray]]
    starts: Callable[[FloatArray], FloatArray]
    published: Member
    usual: Callable[[FloatArray], Mapping[int, tuple[float, float]]]
    expected: Callable[[Prior, Runs], Form]
    directions: FloatArray
    tail: float = 5.0

    def fit(
        self,
        member: Member,
        runs: Runs,
        counts: FloatArray | None = None,
        starts: FloatArray | None = None,
        rng: np.random.Generator | None = None,
        at_most: Mapping[int, float] | None = None,
        tolerance: float = 1e-6,
        max_steps: int = _MAX_STEPS,
    ) -> Fits:
        """Fit one member to runs, or to resamples of them.

        Args:
            counts: how often each run is drawn, one row a resample, shape ``(b, n)``.
            starts: ``(b, p)``.
            rng: draws the means of the priors, for resamples.
            at_most: further upper bounds of coefficients, by index.
        """
        lower, upper = self.bounds(runs.y)
        for index, value in (at_most or {}).items():
            upper[index] = max(min(upper[index], value), lower[index])
        for index, value in member.held.items():
            lower[index] = upper[index] = max(value, lower[index])
        if starts is None:
            starts = self.starts(runs.y)
            if len(runs.y) > 2 * _MANY_ROWS:
                # Which valley is the deepest, a share of the rows tells; how deep, all.
                some = np.argsort(runs.log_compute, kind="stable")[:: len(runs.y) // _MANY_ROWS]
                part = self.fit(
                    member, runs.only(some), starts=starts, at_most=at_most, tolerance=tolerance
                )
                starts = part.theta[np.argsort(part.objective)[:1]]
        if counts is not None:
            starts = np.broadcast_to(starts, (len(counts), starts.shape[1]))
        weights = runs.weights
        form = self.form(runs.x)
        prior = None
        if member.prior:
            # One first fit tells the unit of the objective: what a typical run contributes. Of
            # resamples it is where they start.
            first = starts[0]
            if counts is None:
                first = descend(
                    form,
                    runs.y,
                    starts,
                    lower=lower,
                    upper=upper,
                    delta=member.delta,
                    weights=weights,
                    tolerance=1e-3,
                    max_steps=_MAX_STEPS,
                ).best()
                starts = first[None] if len(runs.y) > 2 * _MANY_ROWS else starts
            r = np.abs(form(first[None])[0][0] - runs.y)
            unit = _typical(r, weights, member.delta, int((lower < upper).sum()))
            mean, deviation = np.zeros(len(lower)), np.full(len(lower), np.inf)
            for index, (m, d) in member.prior.items():
                mean[index], deviation[index] = m, d / math.sqrt(max(unit, 1e-12))
            if rng is not None:
                # Its mean is drawn too: where only the prior knows, so does the spread.
                width = np.array([member.prior.get(i, (0.0, 0.0))[1] for i in range(len(mean))])
                mean = mean + width * rng.standard_normal((len(starts), len(mean)))
            prior = (mean, deviation)
        if counts is not None:
            weights = weights * counts
        return descend(
            form,
            runs.y,
            starts,
            lower=lower,
            upper=upper,
            delta=member.delta,
            weights=weights,
            prior=prior,
            tolerance=tolerance,
            max_steps=max_steps,
        )

    def with_usual(self, member: Member, y: FloatArray) -> Member:
        """The member with the priors that it does not have itself, nor holds."""
        usual = {i: prior for i, prior in self.usual(y).items() if i not in member.held}
        return replace(member, prior={**usual, **member.prior})

    def predict(self, theta: FloatArray, x: FloatArray) -> FloatArray:
        """Log losses ``(b, n)`` of coefficients ``(b, p)``."""
        return self.form(x)(theta)[0]


@dataclass(frozen=True)
class Runs:
    """Rows to fit.

    Attributes:
        x: shape ``(n, k)``, centred around ``center``, ``(k,)``; log_compute, y: shape ``(n,)``.
        weights: of the rows, ``(n,)``.
        group: which run a row is of, 0 to g - 1, ``(n,)``.
    """

    x: FloatArray
    log_compute: FloatArray
    y: FloatArray
    weights: FloatArray
    group: np.ndarray
    center: FloatArray

    def only(self, chosen: np.ndarray) -> Runs:
        _, group = np.unique(self.group[chosen], return_inverse=True)
        return replace(
            self,
            x=self.x[chosen],
            log_compute=self.log_compute[chosen],
            y=self.y[chosen],
            weights=self.weights[chosen],
            group=group,
        )

    def resampled(self, n_resamples: int, rng: np.random.Generator) -> FloatArray:
        """How often each row is drawn when runs are drawn with replacement, ``(b, n)``."""
        g = int(self.group.max()) + 1
        counts = rng.multinomial(g, np.full(g, 1 / g), size=n_resamples)
        return counts[:, self.group].astype(float)


@dataclass(frozen=True)
class Misfit:
    """g as a sum of functions: ``g(x) = a Phi(x) u``.

    Attributes:
        directions: of x, ``(j, k)``; r: size along each, ``(j,)``.
        knots: along each direction, where g is told, ``j`` of ``(m_j,)``.
        roots: of the covariance between knots, ``j`` of ``(m_j, m_j)``.
        length: in logs.
        top: largest compute of the fit, along the first direction; cheap: of the prior.
    """

    directions: FloatArray
    r: FloatArray
    knots: tuple[FloatArray, ...]
    roots: tuple[FloatArray, ...]
    length: float
    top: float
    cheap: float

    @staticmethod
    def over(x: FloatArray, directions: FloatArray, prior: Prior) -> Misfit:
        """For runs at ``x``, ``(n, k)``."""
        length = prior.length * math.log(10)
        along = x @ directions.T
        knots, roots = [], []
        for values in along.T:
            n = min(math.ceil(_KNOTS_A_LENGTH * np.ptp(values) / length) + 1, _MOST_KNOTS)
            at = np.linspace(values.min(), values.max(), n) if n > 1 else values[:1]
            knots.append(at)
            covariance = _matern(at, at, length) + 1e-9 * np.eye(len(at))
            roots.append(np.asarray(np.linalg.cholesky(covariance), dtype=float))
        r = np.array([1.0] + [prior.across] * (len(directions) - 1))
        top = float(along[:, 0].max())
        return Misfit(directions, r, tuple(knots), tuple(roots), length, top, prior.cheap)

    def __call__(self, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Phi ``(n, m)``, and what of g's variance over a^2 it leaves out, ``(n,)``."""
        along = x @ self.directions.T
        parts = [
            r * np.linalg.solve(root, _matern(at, values, self.length)).T
            for r, at, root, values in zip(self.r, self.knots, self.roots, along.T, strict=True)
        ]
        phi = np.concatenate(parts, axis=1)
        left_out = np.maximum(float(self.r @ self.r) - np.square(phi).sum(axis=1), 0.0)
        larger = np.exp(0.5 * self.cheap * np.maximum(self.top - along[:, 0], 0))
        return phi * larger[:, None], left_out * larger**2


@dataclass(frozen=True)
class Forecast:
    """The posterior of a law, and of how far from it runs will be.

    Attributes:
        family: of the law; p its number of coefficients.
        misfit: g, with m functions.
        log_compute_max: of the fit.
        theta: coefficients at each point of the grid of s and a, ``(b, p)``.
        u: of g there, ``(b, m)``.
        noise, size: s and a there, ``(b,)``.
        share: ``(b,)``.
        root: of the covariance of theta and u, ``(b, p + m, p + m)``.
    """

    family: Family
    misfit: Misfit
    log_compute_max: float
    theta: FloatArray
    u: FloatArray
    noise: FloatArray
    size: FloatArray
    share: FloatArray
    root: FloatArray

    def predict(self, x: FloatArray) -> FloatArray:
        """Log losses, shape ``(n,)``."""
        g = self.size[:, None] * (self.u @ self.misfit(x)[0].T)
        return np.asarray(self.share @ (self.family.predict(self.theta, x) + g))

    def deviation(self, x: FloatArray, new_measurement: bool = True) -> FloatArray:
        """Of a new run, or of the law, from the prediction; in log loss, ``(n,)``."""
        phi, left_out = self.misfit(x)
        values, J = self.family.form(x)(self.theta)
        middle = values + self.size[:, None] * (self.u @ phi.T)
        J = np.concatenate([J, self.size[:, None, None] * phi], axis=2)
        variance = np.square(J @ self.root).sum(axis=2) + self.size[:, None] ** 2 * left_out
        variance += np.square(middle - self.share @ middle)
        noise = self.noise[:, None] ** 2 * new_measurement
        return np.asarray(np.sqrt(self.share @ (variance + noise)))

    def interval(
        self, x: FloatArray, level: float, new_measurement: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Log losses (low, high), each ``(n,)``."""
        center = self.predict(x)
        half = stdtrit(self.family.tail, 0.5 + level / 2) * self.deviation(x, new_measurement)
        return center - half, center + half

    def draws(self, n_draws: int, seed: int = 0) -> Callable[[FloatArray], FloatArray]:
        """Laws that may hold: x ``(n, k)`` -> log losses ``(n_draws, n)``."""
        rng = np.random.default_rng(seed)
        of = rng.choice(len(self.share), size=n_draws, p=self.share)
        p = self.theta.shape[1]
        off = np.einsum(
            "bij,bj->bi", self.root[of], rng.standard_normal((n_draws, p + len(self.u.T)))
        )
        theta, u = self.theta[of] + off[:, :p], self.u[of] + off[:, p:]

        def drawn(x: FloatArray) -> FloatArray:
            g = self.size[of, None] * (u @ self.misfit(x)[0].T)
            return np.asarray(self.family.predict(theta, x) + g)

        return drawn


def fit_forecast(family: Family, runs: Runs, prior: Prior = PRIOR) -> Forecast:
    """The posterior of a law given runs."""
    y = runs.y
    lower, upper = family.bounds(y)
    p = len(lower)
    misfit = Misfit.over(runs.x, family.directions, prior)
    expected = family.expected(prior, runs)
    theta = family.starts(y)
    n_expected = expected(theta)[0].shape[1]
    # Rows of a run are one observation; what else weighs a row is how well it is known.
    observations = per_run(runs.group)
    weights = runs.weights * observations
    log_s, log_a = math.log(prior.noise), math.log(prior.misfit)

    def posterior(rows: np.ndarray, scales: FloatArray) -> tuple[Form, FloatArray, FloatArray]:
        """Form, aims and weights: of the rows, and of what is expected."""
        x = runs.x[rows]
        of_rows = _with_misfit(family.form(x), misfit(x)[0], p)
        measured = y[rows] / np.exp(scales[:, :1])
        return (
            stacked(of_rows, expected),
            np.pad(measured, [(0, 0), (0, n_expected)]),
            np.pad(weights[rows], (0, n_expected), constant_values=1.0),
        )

    def descended(rows: np.ndarray, theta: FloatArray, u: FloatArray, scales: FloatArray) -> Fits:
        m = u.shape[1]
        open_ended = np.full(2 + m, np.inf)
        form, aims, worth = posterior(rows, scales)
        return descend(
            form,
            aims,
            np.concatenate([theta, scales, u], axis=1),
            lower=np.concatenate([lower, -open_ended]),
            upper=np.concatenate([upper, open_ended]),
            delta=_DELTA,
            weights=worth,
            prior=(np.zeros(p + 2 + m), np.array([np.inf] * (p + 2) + [1.0] * m)),
            tolerance=1e-5,
            max_steps=_MAX_STEPS,
        )

    every = np.arange(len(y))
    some = every
    if len(y) > 2 * _MANY_ROWS:  # which valley is the deepest, a share of the rows tells
        some = np.argsort(runs.log_compute, kind="stable")[:: len(y) // _MANY_ROWS]
    m = misfit(runs.x[:1])[0].shape[1]
    usual = np.tile([log_s, log_a], (len(theta), 1))
    first = descended(some, theta, np.zeros((len(theta), m)), usual).best()

    def at(steps: FloatArray, theta: FloatArray, u: FloatArray) -> _Grid:
        """The mode, its curvature H and its evidence at points of the grid, from such starts."""
        scales = np.array([log_s, log_a]) + _SCALE_WIDTH * steps
        fits = descended(every, theta, u, scales)
        form, aims, worth = posterior(every, scales)
        values, J = form(fits.theta)
        J = np.delete(J, [p, p + 1], axis=2)
        r = np.abs(values - aims)
        w = worth * np.minimum(1.0, _DELTA / np.maximum(r, 1e-300))
        H = np.matmul((w[:, :, None] * J).transpose(0, 2, 1), J)
        diagonal = np.arange(p + m)
        H[:, diagonal, diagonal] += np.array([0.0] * p + [1.0] * m) + 1e-9
        log_evidence = (
            -fits.objective
            - observations.sum() * scales[:, 0]
            - 0.5 * np.linalg.slogdet(H)[1]
            - 0.5 * np.square(steps).sum(axis=1)
        )
        return _Grid(steps, scales, fits.theta[:, :p], fits.theta[:, p + 2 :], H, log_evidence)

    b = len(_STEPS) ** 2
    steps = np.stack(np.meshgrid(_STEPS, _STEPS), axis=-1).reshape(-1, 2)
    grid = at(steps, np.tile(first[:p], (b, 1)), np.tile(first[p + 2 :], (b, 1)))
    middle = b // 2  # s and a as usual
    g = math.exp(log_a) * misfit(runs.x)[0] @ grid.u[middle]
    left = np.abs(family.predict(grid.theta[[middle]], runs.x)[0] + g - y)
    most = math.log(max(_MOST_MEDIANS * float(np.median(left)), 1e-300))
    while True:
        highest = np.flatnonzero(grid.steps[:, 0] == grid.steps[:, 0].max())
        wanted = grid.share()[highest].sum() > _MOST_AT_END
        if not wanted or grid.scales[highest[0], 0] > most:
            break
        above = grid.steps[highest] + np.array([_STEPS[-1] - _STEPS[-2], 0.0])
        grid = grid.and_also(at(above, grid.theta[highest], grid.u[highest]))
    share = grid.share()
    kept = share > _LEAST_SHARE
    root = np.linalg.inv(np.linalg.cholesky(grid.H[kept])).transpose(0, 2, 1)
    return Forecast(
        family=family,
        misfit=misfit,
        log_compute_max=float(runs.log_compute.max()),
        theta=grid.theta[kept],
        u=grid.u[kept],
        noise=np.exp(grid.scales[kept, 0]),
        size=np.exp(grid.scales[kept, 1]),
        share=share[kept] / share[kept].sum(),
        root=root,
    )


@dataclass(frozen=True)
class _Grid:
    """What was found at points of the grid of s and a.

    Attributes:
        steps: of each point, in deviations of its prior, ``(b, 2)``; scales: log s and log a.
        theta, u: at the mode, ``(b, p)`` and ``(b, m)``; H: curvature there.
        log_evidence: ``(b,)``.
    """

    steps: FloatArray
    scales: FloatArray
    theta: FloatArray
    u: FloatArray
    H: FloatArray
    log_evidence: FloatArray

    def share(self) -> FloatArray:
        """Of each point in the posterior, ``(b,)``."""
        share = np.exp(self.log_evidence - self.log_evidence.max())
        return np.asarray(share / share.sum())

    def and_also(self, more: _Grid) -> _Grid:
        return _Grid(
            *(
                np.concatenate([getattr(self, one.name), getattr(more, one.name)])
                for one in fields(self)
            )
        )


def per_run(group: np.ndarray) -> FloatArray:
    """Weight of each row when each run counts once, ``(n,)``."""
    return np.asarray(1.0 / np.bincount(group)[group])


def _with_misfit(form: Form, phi: FloatArray, p: int) -> Form:
    """The form and g, in units of the noise: coefficients ``(theta, log s, log a, u)``."""

    def both(coefficients: FloatArray) -> tuple[FloatArray, FloatArray]:
        theta, u = coefficients[:, :p], coefficients[:, p + 2 :]
        s, a = np.exp(coefficients[:, p, None]), np.exp(coefficients[:, p + 1, None])
        values, J = form(theta)
        own = np.zeros((*values.shape, 2))  # the grid holds s and a
        g = np.broadcast_to(phi, (len(a), *phi.shape)) * a[:, :, None]
        J = np.concatenate([J, own, g], axis=2) / s[:, :, None]
        return (values + a * (u @ phi.T)) / s, J

    return both


def _matern(a: FloatArray, b: FloatArray, length: float) -> FloatArray:
    """Of three halves, ``(n_a, n_b)``."""
    d = math.sqrt(3) * np.abs(a[:, None] - b) / length
    return (1 + d) * np.exp(-d)


def _typical(r: FloatArray, weights: FloatArray, delta: float, n_free: int) -> float:
    """What a typical run adds to twice the objective: where few are left, nearer to the usual."""
    mean_weight = weights.mean()
    left = max(weights.sum() - n_free * mean_weight, 0.0)
    usual = _USUAL_NOISE_WORTH * mean_weight
    total = np.sum(weights * np.minimum(r, delta) * r) + usual * min(_USUAL_NOISE, delta) * (
        _USUAL_NOISE
    )
    return float(total / (left + usual))
