"""What is believed of loss, cost and success, fitted to observations.

Notation
--------
Z        basic points, shape ``(n, d)``
y        what a process models, shape ``(n,)``: the warped loss, the log cost, the success score
E        irreducible loss

The loss is warped, ``y = log(loss - E)``, with ``E`` below every loss seen: along a scaling law
``loss = E + k C^-g`` the warped loss is a line in log C. ``E`` is unknown; a handful of values from
"far below" (where the warp is linear) to "just below" are weighed by their marginal likelihood, and
every prediction averages over them. They share one covariance, so this costs one more right-hand
side each. Losses above that of the search centre (runs that learnt little or nothing) are drawn in
on a logarithmic scale first: how bad they are says little about the front.

Success is a classification. With the Dirichlet transform of Milios et al. 2018 ("Dirichlet-based
Gaussian processes for large-scale calibrated classification", eqs. 4-5) its two latent processes
differ by one Gaussian process with known noise, so it stays exact.

Earlier sweeps may have been measured in other units, of loss and (on other hardware) of cost. Each
is brought to the new one's: its losses by a scale and a shift, its costs by a factor, such that at
the new runs it agrees with them on average. How far it agrees beyond that, and so how far it is
trusted, is the kernel's business (:mod:`carbs.gaussian_process`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, ndtr, ndtri

from carbs.earlier import EarlierRuns
from carbs.gaussian_process import (
    Data,
    GaussianProcess,
    Kernel,
    fit_kernel,
    lengthscale_deviations,
)
from carbs.pareto import most_telling
from carbs.records import Failure, Observation
from carbs.roles import comparable
from carbs.search_space import SearchSpace
from carbs.spaces import FloatArray
from carbs.threads import on_one_thread

if TYPE_CHECKING:
    from botorch.models import ModelListGP

# How far below the least loss E may lie, in units of the spread of the losses.
_SHIFTS = (0.05, 0.15, 0.4, 1.0, 3.0, 30.0)
# How many runs the processes see at most.
_N_TELLING = 512
# And how many of them may be of earlier sweeps.
_N_EARLIER = 128
# Costs may be measured without noise, or with much. Where there is none, the runs say so whatever
# the prior; with one that likes little, noise is taken for a function of many dimensions.
_COST_NOISE_PRIOR = (-5.0, 1.5)
# Variance of the bowl that the loss has along one parameter, in its unit box.
_CURVATURE = 3.0
# Pseudo-count of the class that was not seen, in the Dirichlet transform.
_ALPHA = 0.01
# What is known of learning rates yields where the runs are this much likelier without it (nats).
_DOUBT = 2.0
# How far a drawn kernel's lengthscales stray, in deviations of their posterior.
_STRAYING = 0.5
# Of a prediction: a little more, and its exponential is no number.
_LARGEST_LOG = 700.0


@dataclass(frozen=True)
class Standardisation:
    """``(x - mean) / spread``."""

    mean: float
    spread: float

    @classmethod
    def of(cls, x: FloatArray, least_spread: float = 1e-12) -> Standardisation:
        mean = float(x.mean())
        return cls(mean, max(float(x.std()), 1e-9 * abs(mean), least_spread))

    def apply(self, x: FloatArray) -> FloatArray:
        return np.asarray((x - self.mean) / self.spread)

    def invert(self, y: FloatArray) -> FloatArray:
        return np.asarray(self.mean + self.spread * y)


@dataclass(frozen=True)
class Warp:
    """``y = (log(loss - E) - mean) / spread`` for one irreducible level ``E``."""

    irreducible: float
    scale: Standardisation

    @classmethod
    def of(cls, losses: FloatArray, irreducible: float) -> Warp:
        return cls(irreducible, Standardisation.of(np.log(losses - irreducible)))

    def apply(self, losses: FloatArray) -> FloatArray:
        return self.scale.apply(np.log(losses - self.irreducible))

    def invert(self, y: FloatArray) -> FloatArray:
        return np.asarray(self.irreducible + np.exp(np.minimum(self.scale.invert(y), _LARGEST_LOG)))

    def log_derivative(self, losses: FloatArray) -> FloatArray:
        return np.asarray(-np.log(losses - self.irreducible) - math.log(self.scale.spread))


@dataclass(frozen=True)
class SuccessModel:
    """Log odds of success: ``score`` times a process around ``mean``."""

    process: GaussianProcess
    mean: float
    score: float

    def chances(self, Z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Of success, ``(q,)`` each: on average, and with its edge where it most likely lies.

        The average, a logistic-Gaussian integral, is MacKay's (1992, eq. 10).
        """
        mean, std = self.process.posterior(Z)
        mean, std = self.score * (self.mean + mean[:, 0]), self.score * std
        return expit(mean / np.sqrt(1 + math.pi * std**2 / 8)), expit(mean)


@dataclass(frozen=True)
class Surrogate:
    """What is believed of loss, cost and success at every point of the basic space.

    Losses here are to be minimised; the optimizer turns a maximisation around.

    Attributes:
        output_process: one right-hand side a warp.
        warps: candidates for the irreducible level, with ``warp_weights`` that sum to one.
        cost_process: of the log cost, standardised by ``cost_scale``.
        success: None while nothing has failed.
        log_lengthscale_deviations: how uncertain the loss's lengthscales are, shape ``(d,)``.
    """

    output_process: GaussianProcess
    warps: tuple[Warp, ...]
    warp_weights: FloatArray
    cost_process: GaussianProcess
    cost_scale: Standardisation
    success: SuccessModel | None
    log_lengthscale_deviations: FloatArray

    def drawn(self, rng: np.random.Generator) -> Surrogate:
        """With one of the kernels of the loss that the runs allow, in place of the likeliest.

        A kernel at its mode is certain where it ought not to be: a suggestion that comes out as
        predicted then changes nothing, and the next one is the same.
        """
        lengthscales = self.output_process.kernel.lengthscales
        stray = _STRAYING * self.log_lengthscale_deviations * rng.standard_normal(len(lengthscales))
        drawn = self.output_process.with_lengthscales(lengthscales * np.exp(stray))
        return replace(self, output_process=drawn)

    @property
    def axes(self) -> FloatArray:
        """Along which losses compare, ``(d, d)`` (:func:`carbs.roles.comparable`)."""
        return self.output_process.kernel.axes

    @property
    def best_warp(self) -> int:
        return int(np.argmax(self.warp_weights))

    def warped_output(self, Z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and deviation ``(q,)`` of the loss under the most likely warp, noise excluded."""
        mean, std = self.output_process.posterior(Z)
        return mean[:, self.best_warp], std

    def log_cost(self, Z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Mean and deviation ``(q,)`` of the natural logarithm of the cost, noise excluded."""
        mean, std = self.cost_process.posterior(Z)
        return self.cost_scale.invert(mean[:, 0]), self.cost_scale.spread * std

    def cost_noise(self) -> float:
        """Deviation of a measured log cost around its function."""
        return self.cost_scale.spread * math.sqrt(self.cost_process.noise)

    def success_chances(self, Z: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Of success, ``(q,)`` each, on average, and with its edge where it most likely lies."""
        if self.success is None:
            return np.ones(len(Z)), np.ones(len(Z))
        return self.success.chances(Z)

    def success_probability(self, Z: FloatArray) -> FloatArray:
        """Shape ``(q,)``; one while nothing has failed."""
        return self.success_chances(Z)[0]

    def output_quantiles(
        self, Z: FloatArray, levels: Sequence[float], with_noise: bool = True
    ) -> FloatArray:
        """Quantiles of the loss, of a new measurement or of the function: ``(q, n_levels)``.

        The distribution is the mixture over irreducible levels; its quantiles are found by
        bisection between the quantiles of its parts.
        """
        means, std = self.output_process.posterior(Z)
        if with_noise:
            std = np.sqrt(std**2 + self.output_process.noise)
        parts = np.empty((len(Z), len(self.warps), len(levels)))
        for w, warp in enumerate(self.warps):
            for i, level in enumerate(levels):
                parts[:, w, i] = warp.invert(means[:, w] + std * ndtri(level))
        keeps = self.warp_weights > 1e-6
        low, high = parts[:, keeps].min(axis=1), parts[:, keeps].max(axis=1)
        for _ in range(50):
            middle = (low + high) / 2
            below = np.zeros_like(middle)
            for w, warp in enumerate(self.warps):
                if not keeps[w]:
                    continue
                inside = middle > warp.irreducible
                gaps = np.where(inside, middle - warp.irreducible, 1.0)
                scores = (warp.scale.apply(np.log(gaps)) - means[:, [w]]) / std[:, None]
                below += self.warp_weights[w] * np.where(inside, ndtr(scores), 0.0)
            high = np.where(below > levels, middle, high)
            low = np.where(below > levels, low, middle)
        return np.asarray((low + high) / 2)

    def cost_quantiles(self, Z: FloatArray, levels: Sequence[float]) -> FloatArray:
        """Quantiles of a new measurement's cost, ``(q, n_levels)``."""
        mean, std = self.log_cost(Z)
        std = np.sqrt(std**2 + self.cost_noise() ** 2)
        logs = mean[:, None] + std[:, None] * ndtri(np.array(levels))
        return np.asarray(np.exp(np.clip(logs, -_LARGEST_LOG, _LARGEST_LOG)))

    def to_botorch(self) -> ModelListGP:
        """A BoTorch model of two outcomes, for acquisition functions other than ours.

        Its inputs are basic coordinates ``(..., q, d)``, as ``SearchSpace.encode`` gives them. Its
        outcomes are the loss under the most likely warp and the natural logarithm of the cost, with
        the posteriors of :meth:`warped_output` and :meth:`log_cost`. Both are to be minimised, and
        BoTorch maximises: give it an objective, or a posterior transform, that turns the sign.
        """
        from carbs.botorch_models import to_model_list  # brings torch

        scale = self.cost_scale
        return to_model_list(
            [
                (self.output_process, self.best_warp, 0.0, 1.0),
                (self.cost_process, 0, scale.mean, scale.spread),
            ]
        )

    def condition(self, Z: FloatArray) -> Surrogate:
        """As if the pending points ``Z`` had come out as predicted."""
        if not len(Z):
            return self
        output_mean, _ = self.output_process.posterior(Z)
        cost_mean, _ = self.cost_process.posterior(Z)
        return replace(
            self,
            output_process=self.output_process.condition(Z, output_mean),
            cost_process=self.cost_process.condition(Z, cost_mean),
        )


@dataclass(frozen=True)
class _Measured:
    """Runs: points ``(n, d)``, or ``(n, d + s)`` with their sweeps, losses and log costs ``(n,)``.

    Attributes:
        deviations: of losses that are forecasts; zero where measured, shape ``(n,)``.
        shares: of each dimension in its parameter, shape ``(d,)``.
        axes: along which losses and successes compare, shape ``(d, d)``.
        n_sweeps: s.
    """

    Z: FloatArray
    losses: FloatArray
    deviations: FloatArray
    log_costs: FloatArray
    shares: FloatArray
    axes: FloatArray
    n_sweeps: int = 0

    def only(self, indices: NDArray[np.intp] | slice) -> _Measured:
        return replace(
            self,
            Z=self.Z[indices],
            losses=self.losses[indices],
            deviations=self.deviations[indices],
            log_costs=self.log_costs[indices],
        )


@on_one_thread
def fit_surrogate(
    space: SearchSpace,
    observations: Sequence[Observation],
    failures: Sequence[Failure] = (),
    earlier: Sequence[EarlierRuns] = (),
) -> Surrogate:
    """Fit all three processes.

    Args:
        space: of the configurations.
        observations: at least one, here or in an earlier sweep; outputs are to be minimised.
        failures: configurations that could not be trained.
        earlier: sweeps, trusted as far as they agree with this one.
    """
    new = _Measured(
        space.encode_all([observation.params for observation in observations]),
        np.array([observation.output for observation in observations]),
        np.array([observation.output_deviation for observation in observations]),
        np.log([observation.cost for observation in observations]),
        space.shares,
        comparable(space),
    )
    first = new.only(slice(n_fitted(len(new.Z))))
    told = new.only(most_telling(new.log_costs, new.losses, _N_TELLING))
    failed_Z = space.encode_all([failure.params for failure in failures])
    failed = [failed_Z[: n_fitted(len(failed_Z))]], [failed_Z[_evenly(len(failed_Z), _N_TELLING)]]
    n_succeeded, n_failed = len(new.Z), len(failed_Z)
    if earlier:
        pasts = [_past(runs, new, _N_EARLIER // len(earlier)) for runs in earlier]
        first, told = _together(first, pasts), _together(told, pasts)
        for runs in earlier:
            some = runs.failed_points[_evenly(len(runs.failed_points), _N_EARLIER)]
            for parts in failed:
                parts.append(some)
            n_succeeded, n_failed = n_succeeded + len(runs.Z), n_failed + len(some)
    surrogate = _fit(first, told)
    if not n_failed:
        return surrogate
    # The rate of success, as if one more had succeeded and one more had failed.
    rate = (n_succeeded + 1) / (n_succeeded + n_failed + 2)
    failed_first, failed_told = (_of_sweeps(parts) for parts in failed)
    first, told = (replace(runs, axes=surrogate.axes) for runs in (first, told))
    success = _fit_success(first, failed_first, told, failed_told, rate)
    return replace(surrogate, success=success)


def _fit(first: _Measured, told: _Measured) -> Surrogate:
    """Kernels fitted to the first runs, processes conditioned on those told."""
    n_sweeps, shares = told.n_sweeps, told.shares
    runs = _Runs(first.Z, first.losses, shares, first.axes, first.deviations, n_sweeps)
    output_kernel, deviations = _output_kernel(runs)
    cost_kernel = _cost_kernel(_Runs(first.Z, first.log_costs, shares, n_sweeps=n_sweeps))
    Z, losses, log_costs = told.Z, told.losses, told.log_costs

    losses = _draw_in(losses, Z)
    warps = _warps(losses)
    output_data = _warped(Z, losses, warps, told.deviations, n_sweeps)
    output_process = GaussianProcess(output_kernel, output_data)
    log_evidence = _log_evidence(output_process, warps, losses)
    weights = np.exp(log_evidence - log_evidence.max())

    cost_scale = _cost_scale(log_costs)
    cost_data = Data.pooled(Z, cost_scale.apply(log_costs)[:, None], n_sweeps=n_sweeps)
    return Surrogate(
        output_process,
        warps,
        weights / weights.sum(),
        GaussianProcess(cost_kernel, cost_data),
        cost_scale,
        success=None,
        log_lengthscale_deviations=deviations,
    )


def _past(runs: EarlierRuns, new: _Measured, n_most: int) -> tuple[_Measured, Surrogate]:
    """An earlier sweep's most telling runs, and what is believed from them alone."""
    measured = replace(
        new, Z=runs.Z, losses=runs.outputs, deviations=runs.deviations, log_costs=runs.log_costs
    )
    measured = measured.only(most_telling(runs.log_costs, runs.outputs, n_most))
    return measured, _fit(measured, measured)


def _together(new: _Measured, pasts: Sequence[tuple[_Measured, Surrogate]]) -> _Measured:
    """New runs, and as many earlier ones as there is room for, in the new one's units."""
    room = (_N_TELLING - len(new.Z)) // len(pasts)
    parts = [new, *(_in_units_of(new, old, past).only(slice(room)) for old, past in pasts)]
    return replace(
        new,
        Z=_of_sweeps([part.Z for part in parts]),
        losses=np.concatenate([part.losses for part in parts]),
        deviations=np.concatenate([part.deviations for part in parts]),
        log_costs=np.concatenate([part.log_costs for part in parts]),
        n_sweeps=len(pasts),
    )


def _of_sweeps(parts: Sequence[FloatArray]) -> FloatArray:
    """Points of the new and of earlier sweeps, ``(n_i, d)`` each, as one ``(n, d + s)``."""
    sweep = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    return np.concatenate([np.concatenate(parts), np.eye(len(parts))[sweep][:, 1:]], axis=1)


def _in_units_of(new: _Measured, old: _Measured, past: Surrogate) -> _Measured:
    """An earlier sweep as if measured with the new one's units and on its hardware.

    Its predictions for the new runs get their mean and, as far as that can be told, their spread.
    Before the first run its units are taken to be the same.
    """
    if not len(new.Z):
        return old
    losses = _draw_in(new.losses, new.Z)
    expected = past.warps[past.best_warp].invert(past.warped_output(new.Z)[0])
    scale = 1.0
    if min(np.ptp(expected), np.ptp(old.losses)) > 1e-9 * float(np.abs(expected).max()):
        log_ratio = math.log(max(float(losses.std() / expected.std()), 1e-6))
        # Many runs that were expected to differ tell the ratio; a large one is not by chance.
        n_telling = (len(new.Z) - 1) * min(1.0, float(expected.std() / old.losses.std())) ** 2
        weight = n_telling * (1 + log_ratio**2)
        scale = math.exp(log_ratio * weight / (weight + 2))
    shift = losses.mean() - scale * expected.mean()
    log_factor = (new.log_costs - past.log_cost(new.Z)[0]).mean()
    return replace(
        old,
        losses=shift + scale * old.losses,
        deviations=scale * old.deviations,
        log_costs=old.log_costs + log_factor,
    )


def n_fitted(n: int) -> int:
    """Of how many runs, the first ones, the kernels' parameters are fitted to.

    All of the first sixteen, and then those up to the last step of a ladder that grows by an
    eighth. Parameters change slowly, and so most suggestions need no fit. A fit takes time that
    grows with the cube of the runs, and so the ladder ends where ``_N_TELLING`` does.
    """
    step = 16
    if n <= step:
        return n
    while (following := step + step // 8) <= min(n, _N_TELLING):
        step = following
    return step


class _Runs:
    """Points and what was measured there, hashable, so that no fit is made twice."""

    def __init__(
        self,
        Z: FloatArray,
        y: FloatArray,
        shares: FloatArray,
        axes: FloatArray | None = None,
        deviations: FloatArray | None = None,
        n_sweeps: int = 0,
    ) -> None:
        self.Z, self.y, self.shares, self.n_sweeps = Z, y, shares, n_sweeps
        self.axes = np.eye(len(shares)) if axes is None else axes
        self.deviations = np.zeros(len(y)) if deviations is None else deviations
        arrays = (Z, y, shares, self.axes, self.deviations)
        self._key = (Z.shape, n_sweeps, *(array.tobytes() for array in arrays))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Runs) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __len__(self) -> int:
        return len(self.y)

    def possible_axes(self) -> list[FloatArray]:
        """Its own, and those of the basic space where they differ."""
        plain = np.eye(len(self.shares))
        return [self.axes] if np.array_equal(self.axes, plain) else [self.axes, plain]

    def earlier(self) -> _Runs | None:
        """The first half, whose fit is a good start; None where there is too little."""
        n = n_fitted(len(self) // 2)
        if n < 8:
            return None
        measured = self.Z[:n], self.y[:n], self.shares, self.axes, self.deviations[:n]
        return _Runs(*measured, self.n_sweeps)


@functools.lru_cache(maxsize=256)
def _output_kernel(runs: _Runs) -> tuple[Kernel, FloatArray]:
    """Fitted at the warp likeliest under a first guess; and its lengthscales' deviations."""
    earlier = runs.earlier()
    losses = _draw_in(runs.y, runs.Z)
    warps = _warps(losses)
    data = _warped(runs.Z, losses, warps, runs.deviations, runs.n_sweeps)
    if earlier is not None:
        start, _ = _output_kernel(earlier)
    else:
        guess = data.only(len(warps) // 2)
        start = fit_kernel(guess, shares=runs.shares, curvature=_CURVATURE, axes=runs.axes)
    evidence = _log_evidence(GaussianProcess(start.refitted_to(runs.Z), data), warps, losses)
    best = data.only(int(np.argmax(evidence)))
    fits = [
        fit_kernel(best, shares=runs.shares, curvature=_CURVATURE, axes=axes, start=start)
        for axes in runs.possible_axes()
    ]
    likely = [float(GaussianProcess(fit, best).log_marginal_likelihood()[0]) for fit in fits]
    kernel = fits[0] if likely[0] >= likely[-1] - _DOUBT else fits[-1]
    return kernel, lengthscale_deviations(best, kernel)


@functools.lru_cache(maxsize=256)
def _cost_kernel(runs: _Runs) -> Kernel:
    earlier = runs.earlier()
    start = None if earlier is None else _cost_kernel(earlier)
    scaled = _cost_scale(runs.y).apply(runs.y)
    data = Data.pooled(runs.Z, scaled[:, None], n_sweeps=runs.n_sweeps)
    return fit_kernel(data, noise_prior=_COST_NOISE_PRIOR, shares=runs.shares, start=start)


@functools.lru_cache(maxsize=256)
def _success_kernel(runs: _Runs, noise: float) -> Kernel:
    data = Data.pooled(runs.Z, runs.y[:, None], n_sweeps=runs.n_sweeps)
    return fit_kernel(data, fixed_noise=noise, shares=runs.shares, axes=runs.axes)


def _cost_scale(log_costs: FloatArray) -> Standardisation:
    # At least one nat: the first few runs may cost alike, but a step away from them need not.
    return Standardisation.of(log_costs, least_spread=1.0)


def _warped(
    Z: FloatArray,
    losses: FloatArray,
    warps: Sequence[Warp],
    deviations: FloatArray,
    n_sweeps: int,
) -> Data:
    """The losses under each warp; what a forecast may be off, under the one in the middle."""
    middle = warps[len(warps) // 2]
    extra = np.square(deviations * np.exp(middle.log_derivative(losses)))
    Y = np.stack([warp.apply(losses) for warp in warps], axis=1)
    return Data.pooled(Z, Y, extra, n_sweeps)


def _log_evidence(
    process: GaussianProcess, warps: Sequence[Warp], losses: FloatArray
) -> FloatArray:
    """Log marginal likelihood of the losses, by warp: shape ``(m,)``."""
    jacobian = [float(warp.log_derivative(losses).sum()) for warp in warps]
    return np.asarray(process.log_marginal_likelihood() + np.array(jacobian))


def _draw_in(losses: FloatArray, Z: FloatArray) -> FloatArray:
    """The losses, those above the centre's on a logarithmic scale."""
    center_loss = float(losses[np.argmin(np.square(Z).sum(axis=1))])
    scale = center_loss - float(losses.min())
    if scale <= 0:
        return losses
    above = np.maximum(losses - center_loss, 0.0)
    return np.asarray(np.minimum(losses, center_loss) + scale * np.log1p(above / scale))


def _warps(losses: FloatArray) -> tuple[Warp, ...]:
    # The spread of the better half: a few terrible runs do not set the scale.
    spread = float(np.median(losses) - losses.min())
    if spread <= 0:
        spread = float(np.ptp(losses))
    spread = max(spread, 1e-9 * abs(float(losses.min())), 1e-300)
    return tuple(Warp.of(losses, float(losses.min()) - shift * spread) for shift in _SHIFTS)


def _fit_success(
    first: _Measured,
    failed_first: FloatArray,
    told: _Measured,
    failed_told: FloatArray,
    rate: float,
) -> SuccessModel:
    """The kernel is fitted to the first runs, the process conditioned on those told.

    Args:
        first, told: runs that succeeded.
        failed_first, failed_told: points that failed.
        rate: of success.
    """
    var_seen, var_unseen = math.log(1 / (1 + _ALPHA) + 1), math.log(1 / _ALPHA + 1)
    score = math.log(1 + _ALPHA) - var_seen / 2 - math.log(_ALPHA) + var_unseen / 2
    mean = math.log(rate / (1 - rate)) / score
    noise = (var_seen + var_unseen) / score**2
    points, labels = _labelled(first.Z, failed_first)
    runs = _Runs(points, labels, told.shares, told.axes, n_sweeps=told.n_sweeps)
    kernel = _success_kernel(runs, noise)
    points, labels = _labelled(told.Z, failed_told)
    data = Data.pooled(points, (labels - mean)[:, None], n_sweeps=told.n_sweeps)
    return SuccessModel(GaussianProcess(kernel, data), mean, score)


def _labelled(Z: FloatArray, failed_Z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Points, and 1 where a run succeeded, -1 where it failed."""
    labels = np.concatenate([np.ones(len(Z)), -np.ones(len(failed_Z))])
    return np.concatenate([Z, failed_Z]), labels


def _evenly(n: int, n_most: int) -> NDArray[np.intp]:
    """Indices of at most ``n_most`` of n, evenly spread."""
    return np.linspace(0, n - 1, min(n, n_most)).round().astype(np.intp)
