"""Forecasts with honest intervals: a law's plausible forms, averaged, and backtested by compute.

The forms themselves are listed in :mod:`carbs.analysis.laws.power_fits`.

Notation
--------
C        compute of a run, shape ``(n,)``;  x  what a law depends on, in centred logs, ``(n, k)``
y        log loss, shape ``(n,)``
member   one form of the law with one way to fit it
u        share of a member in the average, ``(m,)``
h        how far beyond the fit a run lies: decades of compute over the fit's largest, at least 0
v        variance of the average at a run: between members, and of their bootstrap
s, q     deviation of a run from its curve; deviation of the truth from the average, a decade

What is wrong with the interval of one fitted law is that it supposes the law. Runs at ten times the
compute then fall outside of it far more often than promised, because no form holds exactly, the
cheap runs that outnumber the dear ones lie off the curve in their own way, and coefficients are
traded against each other where they cannot be told apart.

Here the runs themselves say how far to trust an extrapolation. The family is fitted to the cheaper
runs and predicts the dearer ones, at every factor that leaves enough of both. Each member's errors
give its share, ``u ~ (mean square)^-2``. All errors together give s and q: an error is Student's t
with variance ``v + s^2 + q^2 h^2``, and s, q are at their posterior mode. The prior, ``log q/s``
normal, is all there is where runs are too few to be split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import t as student

from carbs.analysis.laws.fitting import Fits, Form, descend
from carbs.spaces import FloatArray

# Factors between the largest compute that a backtest fits and the largest there is.
_FACTORS = (2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
_SPLIT_RESAMPLES = 20
_TAIL = 5.0  # degrees of freedom of an error
# What a law misses by, a decade beyond its runs, where nothing tells; the deviation of its log; and
# how much one split says about it, since splits of the same runs repeat one another.
_USUAL_DRIFT, _DRIFT_PRIOR_WIDTH, _SPLIT_WORTH = 5e-3, 0.8, 0.5
_LEAST_NOISE = 1e-5
# Noise of one run, and how many runs that guess is worth.
_USUAL_NOISE, _USUAL_NOISE_WORTH = 2e-3, 2.0
# A form that few runs hardly determine has a flat valley, and need not be followed to its end.
_MAX_STEPS = 80
# Of more rows than that fewer resamples will do: each is that much better determined.
_MANY_ROWS, _LEAST_RESAMPLES = 200, 10


def affordable(n_resamples: int, n_rows: int, least: int = _LEAST_RESAMPLES) -> int:
    """How many resamples of so many rows are worth their time."""
    return min(n_resamples, max(least, n_resamples * _MANY_ROWS // n_rows))


@dataclass(frozen=True)
class Member:
    """One form of a law and one way to fit it.

    Attributes:
        tilt: a run weighs ``(C / max C)^tilt``.
        held: coefficients that do not vary, by index; minus infinity is as low as it goes.
        prior: mean and deviation of coefficients that have a prior, by index.
        delta: of the Huber loss.
    """

    tilt: float = 0.0
    held: Mapping[int, float] = field(default_factory=dict)
    prior: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    delta: float = 3e-3


@dataclass(frozen=True)
class Family:
    """The forms of one law.

    Attributes:
        form: x ``(n, k)`` -> the form at these runs.
        bounds: y -> (lower, upper), each ``(p,)``.
        starts: y -> where descents begin, ``(b, p)``.
        published: the form and the fit that give a law its coefficients.
        members: which forms are plausible.
        usual: y -> mean and deviation of coefficients before any run says something, by index. It
            decides where the runs do not, and hardly counts where they do.
    """

    form: Callable[[FloatArray], Form]
    bounds: Callable[[FloatArray], tuple[FloatArray, FloatArray]]
    starts: Callable[[FloatArray], FloatArray]
    published: Member
    members: Sequence[Member]
    usual: Callable[[FloatArray], Mapping[int, tuple[float, float]]]

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
        weights = runs.weights * np.exp(member.tilt * (runs.log_compute - runs.log_compute.max()))
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
        x: shape ``(n, k)``; log_compute, y: shape ``(n,)``.
        weights: of the rows, ``(n,)``.
        group: which run a row is of, 0 to g - 1, ``(n,)``.
    """

    x: FloatArray
    log_compute: FloatArray
    y: FloatArray
    weights: FloatArray
    group: np.ndarray

    def only(self, chosen: np.ndarray) -> Runs:
        _, group = np.unique(self.group[chosen], return_inverse=True)
        return Runs(
            self.x[chosen], self.log_compute[chosen], self.y[chosen], self.weights[chosen], group
        )

    def resampled(self, n_resamples: int, rng: np.random.Generator) -> FloatArray:
        """How often each row is drawn when runs are drawn with replacement, ``(b, n)``."""
        g = int(self.group.max()) + 1
        counts = rng.multinomial(g, np.full(g, 1 / g), size=n_resamples)
        return counts[:, self.group].astype(float)


@dataclass(frozen=True)
class Forecast:
    """Average of a family's members, with what its errors were under extrapolation.

    Attributes:
        family, log_compute_max: of the fit.
        theta: one row a member, ``(m, p)``.
        share: ``(m,)``.
        resamples: of each member, ``(m, b, p)``.
        noise, drift: s, q.
        errors: of the backtest inside the runs, one row a held-out run:
            (factor of the split, decades beyond the fit, log error, its deviation).
    """

    family: Family
    log_compute_max: float
    theta: FloatArray
    share: FloatArray
    resamples: FloatArray
    noise: float
    drift: float
    errors: FloatArray

    def predict(self, x: FloatArray) -> FloatArray:
        """Log losses, shape ``(n,)``."""
        return self.share @ self.family.predict(self.theta, x)

    def deviation(
        self, x: FloatArray, log_C: FloatArray, new_measurement: bool = True
    ) -> FloatArray:
        """Of a new run, or of the law, from the prediction; in log loss, ``(n,)``."""
        variance = self.spread(x) + (self.drift * beyond(log_C, self.log_compute_max)) ** 2
        return np.sqrt(variance + self.noise**2 * new_measurement)

    def spread(self, x: FloatArray) -> FloatArray:
        """v, ``(n,)``."""
        predicted = self.family.predict(self.theta, x)
        between = self.share @ np.square(predicted - self.share @ predicted)
        m, b, p = self.resamples.shape
        if not b:
            return np.asarray(between)
        drawn = self.family.predict(self.resamples.reshape(m * b, p), x).reshape(m, b, -1)
        return np.asarray(between + self.share @ np.square(drawn - predicted[:, None]).mean(axis=1))

    def interval(
        self, x: FloatArray, log_C: FloatArray, level: float, new_measurement: bool = True
    ) -> tuple[FloatArray, FloatArray]:
        """Log losses (low, high), each ``(n,)``."""
        center = self.predict(x)
        half = student.ppf(0.5 + level / 2, _TAIL) * self.deviation(x, log_C, new_measurement)
        return center - half, center + half


def beyond(log_C: FloatArray, log_C_max: float) -> FloatArray:
    """h: decades beyond the largest compute."""
    return np.maximum(log_C - log_C_max, 0) / math.log(10)


def fit_forecast(family: Family, runs: Runs, n_resamples: int = 100, seed: int = 0) -> Forecast:
    """Fit every member, and learn from the cheaper runs how well they predict the dearer ones."""
    rng = np.random.default_rng(seed)
    p = len(family.bounds(runs.y)[0])
    splits = _splits(runs, p)
    backtests = []
    for factor, fitted, held_out in splits:
        part = _fit_members(family, runs.only(fitted), _SPLIT_RESAMPLES, rng)
        backtests.append((factor, part, runs.only(held_out)))
    whole = _fit_members(family, runs, n_resamples, rng)
    share = whole.share
    if backtests:
        squares = np.mean(
            [
                np.square(family.predict(part.theta, held.x) - held.y).mean(axis=1)
                for _, part, held in backtests
            ],
            axis=0,
        )
        share = (squares + _LEAST_NOISE**2) ** -2.0
        share = share / share.sum()
    rows = [
        _errors(factor, replace(part, share=share), held, len(backtests))
        for factor, part, held in backtests
    ]
    whole = replace(whole, share=share)
    # What the dearer half leaves of its curve: no extrapolation, no spread.
    dear = runs.log_compute >= np.median(runs.log_compute)
    n_free = max(len(runs.y) - p, 1)
    r = (whole.predict(runs.x) - runs.y) * math.sqrt(len(runs.y) / n_free)
    none = np.zeros(int(dear.sum()))
    inside = np.column_stack([none, none, r[dear], none, _per_run(runs.group[dear])])
    tested = np.concatenate([np.zeros((0, 5)), *rows])
    noise, drift = _calibrate(np.concatenate([tested, inside]))
    return replace(whole, noise=noise, drift=drift, errors=tested[:, :4])


def _errors(factor: float, part: Forecast, held: Runs, n_splits: int) -> FloatArray:
    """(factor, h, error, root of v, weight) of runs that were held out, ``(n, 5)``.

    A run of many rows counts once, and so does one that several splits predict.
    """
    return np.column_stack(
        [
            np.full(len(held.y), factor),
            beyond(held.log_compute, part.log_compute_max),
            part.predict(held.x) - held.y,
            np.sqrt(part.spread(held.x)),
            _per_run(held.group) / n_splits,
        ]
    )


def _fit_members(
    family: Family, runs: Runs, n_resamples: int, rng: np.random.Generator
) -> Forecast:
    counts = runs.resampled(affordable(n_resamples, len(runs.y)), rng)
    theta, resamples = [], []
    for member in (family.with_usual(member, runs.y) for member in family.members):
        many = len(runs.y) > 2 * _MANY_ROWS
        best = family.fit(member, runs, tolerance=1e-4 if many else 1e-6).best()
        theta.append(best)
        resamples.append(family.fit(member, runs, counts, best[None], rng, tolerance=1e-3).theta)
    m = len(family.members)
    return Forecast(
        family,
        float(runs.log_compute.max()),
        np.array(theta),
        np.full(m, 1 / m),
        np.array(resamples),
        0.0,
        0.0,
        np.zeros((0, 4)),
    )


def _typical(r: FloatArray, weights: FloatArray, delta: float, n_free: int) -> float:
    """What a typical run adds to twice the objective: where few are left, nearer to the usual."""
    mean_weight = weights.mean()
    left = max(weights.sum() - n_free * mean_weight, 0.0)
    usual = _USUAL_NOISE_WORTH * mean_weight
    total = np.sum(weights * np.minimum(r, delta) * r) + usual * min(_USUAL_NOISE, delta) * (
        _USUAL_NOISE
    )
    return float(total / (left + usual))


def _splits(runs: Runs, p: int) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """(factor, rows to fit, rows to predict), where both are enough."""
    # A run belongs where its last row does, so that none is on both sides.
    end = np.full(int(runs.group.max()) + 1, -np.inf)
    np.maximum.at(end, runs.group, runs.log_compute)
    splits = []
    for factor in _FACTORS[:: 1 if len(runs.y) < _MANY_ROWS * 4 else 2]:
        cap = runs.log_compute.max() - math.log(factor)
        fitted = end[runs.group] <= cap
        held = ~fitted & (runs.log_compute > cap)
        n_fitted, n_held = (len(np.unique(runs.group[rows])) for rows in (fitted, held))
        if n_fitted >= max(2 * p, 10) and n_held >= 3:
            splits.append((factor, np.flatnonzero(fitted), np.flatnonzero(held)))
    return splits


def _per_run(group: np.ndarray) -> FloatArray:
    """Weight of each row when each run counts once, ``(n,)``."""
    return np.asarray(1.0 / np.bincount(group)[group])


def _calibrate(errors: FloatArray) -> tuple[float, float]:
    """s and q.

    Args:
        errors: (factor of the split or 0, h, error, root of v, weight), ``(n, 5)``.
    """
    factor, h, error, spread, weight = errors.T
    rest = error.copy()
    drifts = []
    for split in np.unique(factor[factor > 0]):
        rows = factor == split
        slope, precision = _slope(h[rows], error[rows], weight[rows])
        rest[rows] -= slope * h[rows]
        known = np.average(spread[rows] ** 2, weights=weight[rows])
        drifts.append((slope, precision, known / np.average(h[rows] ** 2, weights=weight[rows])))
    middle = max(float(np.sqrt(np.mean(rest**2))), _LEAST_NOISE)
    s = middle * np.geomspace(0.1, 3, 200)
    density = student.logpdf(rest / s[:, None], _TAIL) @ weight - weight.sum() * np.log(s)
    noise = float(s[np.argmax(density)])
    likely = math.sqrt(noise * _USUAL_DRIFT)
    q = likely * np.geomspace(0.02, 50, 200)
    density = -0.5 * (np.log(q / likely) / _DRIFT_PRIOR_WIDTH) ** 2
    for slope, precision, known in drifts:
        variance = q**2 + noise**2 / precision + known
        density -= 0.5 * _SPLIT_WORTH * (slope**2 / variance + np.log(variance))
    posterior = np.exp(density - density.max())
    return noise, math.sqrt(float(posterior @ q**2 / posterior.sum()))


def _slope(h: FloatArray, error: FloatArray, weight: FloatArray) -> tuple[float, float]:
    """The line through zero with the least absolute errors, and the sum of squares behind it."""
    slope, floor = 0.0, max(float(np.median(np.abs(error))), _LEAST_NOISE)
    for _ in range(20):
        w = weight * h / np.maximum(np.abs(error - slope * h), floor)
        slope = float(w @ error / max(float(w @ h), 1e-12))
    return slope, max(float((weight * h) @ h / weight.max()), 1e-9)
