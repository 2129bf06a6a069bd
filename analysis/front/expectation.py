"""What a run beyond the sweep is expected to measure, by two models.

The response surface (:mod:`carbs.analysis.front.response_surface`) continues a scaling law with an
irreducible loss; the search's surrogate (:mod:`carbs.surrogate`) continues a trend in log
parameters. The surface is nearly always closer, far out by several times, and gets most of the
weight beforehand; but neither is right, and what each believes of its own uncertainty is a belief.
So both are tried inside the sweep, where the answer is known: fitted to the cheap runs, each
predicts the dearer ones near the front. How well each foretold them moves its weight, and how far
off both together were, in units of their own deviation, widens the interval or narrows it. The
surface keeps its hyperparameters, of noise and of what the law misses, on trial: what the dear runs
have taught of these is in its deviation beyond the sweep, and would be counted twice. Random splits
would not do: they ask for what lies between the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, softmax

from carbs.analysis.front.model import FrontModel
from carbs.analysis.front.response_surface import ResponseSurface
from carbs.analysis.front.success import SuccessLaw
from carbs.spaces import FloatArray
from carbs.surrogate import fit_surrogate
from carbs.threads import on_one_thread

# Fitted to runs of at most these shares of the largest cost.
SPLITS = (1 / 3, 1 / 8)
# Least number of runs to fit to.
_N_FITTED = 16
# Weights of surface and surrogate before any split is looked at.
_WEIGHTS = np.array([0.9, 0.1])
# What that prior, and one of "as wide as they say", counts, in splits.
_PRIOR_OF_WEIGHTS, _PRIOR_OF_WIDTH = 2.0, 2.0
# The same where every split was foretold better than believed; and how many times the worst counts.
_PRIOR_OF_NARROW, _CAUTION = 0.5, 2.0
_GRID: list[float] = ndtr(np.linspace(-4, 4, 161)).tolist()


@dataclass(frozen=True)
class SweepBacktest:
    """Predictions of dear runs from cheap ones.

    Attributes:
        share: of the largest cost that the runs fitted to had at most.
        factors: each dear run's cost over the largest fitted to, ``(n,)``.
        measured: their outputs, ``(n,)``.
        predicted, low, high: at the 90% level, with the weights of before, ``(n,)`` each.
        scores: normal quantiles of the measurements' places in the predictions, ``(n,)``.
        log_density: mean of each form's predictive log density, ``(2,)``.
    """

    share: float
    factors: FloatArray
    measured: FloatArray
    predicted: FloatArray
    low: FloatArray
    high: FloatArray
    scores: FloatArray
    log_density: FloatArray


@dataclass(frozen=True)
class Expectation:
    """A mixture of the forms, widened as the backtests ask.

    Attributes:
        weights: of the surface and of the surrogate.
        widening: of the mixture's distance from its median.
        success: whether there will be anything to measure.
    """

    front: FrontModel
    backtests: tuple[SweepBacktest, ...]
    weights: tuple[float, float]
    widening: float
    success: SuccessLaw

    @classmethod
    def of(cls, front: FrontModel, splits: Sequence[float] = SPLITS) -> Expectation:
        """With the backtests of the front's sweep; to compare configurations it needs none."""
        backtests = backtest_sweep(front, splits)
        # A split is one chance, not as many as it has runs: they share its error.
        n = len(backtests)
        log_densities = np.sum([test.log_density for test in backtests] or [np.zeros(2)], axis=0)
        weights = _PRIOR_OF_WEIGHTS * _WEIGHTS + n * softmax(np.log(_WEIGHTS) + log_densities)
        weights /= _PRIOR_OF_WEIGHTS + n
        widening = _widening([float(np.mean(np.square(test.scores))) for test in backtests])
        success = SuccessLaw.fit(front.space, front.observations, front.failures)
        return cls(front, backtests, (float(weights[0]), float(weights[1])), widening, success)

    def score(self, Z: FloatArray) -> FloatArray:
        """The lower, the better a configuration: the mean of what the forms expect, ``(n,)``.

        To compare configurations, and not to foretell what they measure: the best of many is partly
        a mistake of the form that calls it the best, and the other form does not share it.
        """
        means, _, weights = self.front.surface.predict(Z)
        medians = self.front.surrogate.output_quantiles(Z, (0.5,))[:, 0]
        return np.asarray((weights @ means + medians) / 2)

    def quantiles(self, Z: FloatArray, levels: Sequence[float]) -> FloatArray:
        """Of a new measurement, to be minimised, at basic points ``(n, d)``: ``(n, n_levels)``."""
        parts = [
            self.front.surface.quantiles(Z, _GRID),
            self.front.surrogate.output_quantiles(Z, _GRID),
        ]
        found = mixed(parts, self.weights, (0.5, *levels), self.is_positive)
        if self.is_positive:
            found = np.log(found)
        middle, others = found[:, :1], found[:, 1:]
        widened = middle + self.widening * (others - middle)
        return np.asarray(np.exp(widened) if self.is_positive else widened)

    def chance_of_less(self, z: FloatArray) -> tuple[float, float]:
        """The sweep's best output, and how likely a run at ``z`` ``(d,)`` is to come out better."""
        sign = 1.0 if self.front.direction == "minimize" else -1.0
        best = min(sign * o.output for o in self.front.observations)
        quantiles = self.quantiles(z[None, :], _GRID)[0]
        return sign * best, float(np.interp(best, quantiles, _GRID))

    @property
    def is_positive(self) -> bool:
        """Whether what is minimised was never negative, as losses in nats are not."""
        sign = 1.0 if self.front.direction == "minimize" else -1.0
        return min(sign * o.output for o in self.front.observations) > 0


def _widening(squares: Sequence[float]) -> float:
    """Of the interval beyond the sweep, by each split's mean square score: one, if as believed.

    Where every split was further off than believed it is wider, by the one that was least so.
    Where every split was nearer it is narrower, by the worst of them, doubled: errors so near the
    runs say less of what lies beyond.
    """
    n = len(squares)
    if not n:
        return 1.0
    narrow = (_PRIOR_OF_NARROW + n * _CAUTION * max(squares)) / (_PRIOR_OF_NARROW + n)
    if narrow < 1:
        return math.sqrt(narrow)
    return max(1.0, math.sqrt((_PRIOR_OF_WIDTH + n * min(squares)) / (_PRIOR_OF_WIDTH + n)))


def mixed(
    parts: Sequence[FloatArray],
    weights: Sequence[float],
    levels: Sequence[float],
    is_positive: bool = False,
) -> FloatArray:
    """Quantiles ``(n, n_levels)`` of a mixture, from each part's at ``_GRID``, ``(n, n_grid)``.

    Where what is measured ``is_positive``, they are those of the mixture given that it is.
    """
    found = np.empty((len(parts[0]), len(levels)))
    for i in range(len(found)):
        at = np.sort(np.concatenate([part[i] for part in parts]))
        below = sum(
            weight * np.interp(at, part[i], _GRID, left=0.0, right=1.0)
            for weight, part in zip(weights, parts, strict=True)
        )
        least = float(np.interp(0.0, at, below, left=0.0)) if is_positive else 0.0
        found[i] = np.interp(least + (1 - least) * np.array(levels), below, at)
    if is_positive:  # all of it below zero, but for rounding
        found = np.maximum(found, 1e-12)
    return found


@on_one_thread
def backtest_sweep(
    front: FrontModel, splits: Sequence[float] = SPLITS
) -> tuple[SweepBacktest, ...]:
    """Fit the cheap runs and predict the dear ones, inside the sweep.

    Of the dear runs, those are judged that were predicted to do well: half of them, chosen before
    their outcome is looked at. Splits that leave too few runs on a side are left out.

    Args:
        front: whose runs are used.
        splits: shares of the largest cost that runs may have to be fitted to.
    """
    sign = 1.0 if front.direction == "minimize" else -1.0
    runs = [o.model_copy(update={"output": sign * o.output}) for o in front.observations]
    measured = [o for o in runs if not o.is_forecast]
    largest = float(np.quantile([o.cost for o in measured], 0.98)) if measured else 0.0
    found = []
    for share in splits:
        cheap = [o for o in runs if o.cost <= share * largest]
        dear = [o for o in measured if o.cost > share * largest]
        if len(cheap) < _N_FITTED or len(dear) < 2 or len({o.cost for o in cheap}) < 4:
            continue
        surface = ResponseSurface.of(
            front.space, cheap, front.known_cost, front.surface, axes=front.surrogate.axes
        )
        surrogate = fit_surrogate(front.space, cheap)
        Z = front.space.encode_all([o.params for o in dear])
        parts = [surface.quantiles(Z, _GRID), surrogate.output_quantiles(Z, _GRID)]
        y = np.array([o.output for o in dear])
        bands = mixed(parts, _WEIGHTS.tolist(), (0.05, 0.5, 0.95))
        promising = np.argsort(bands[:, 1], kind="stable")[: max(2, math.ceil(len(dear) / 2))]
        parts, y, bands = [part[promising] for part in parts], y[promising], bands[promising]
        places = np.array(
            [
                _WEIGHTS @ [np.interp(y[i], part[i], _GRID, left=0.0, right=1.0) for part in parts]
                for i in range(len(y))
            ]
        )
        low, middle, high = sign * bands.T
        found.append(
            SweepBacktest(
                share,
                np.array([dear[i].cost for i in promising]) / max(o.cost for o in cheap),
                sign * y,
                middle,
                np.minimum(low, high),
                np.maximum(low, high),
                sign * ndtri(np.clip(places, _GRID[0], _GRID[-1])),
                np.array([_log_density(part, y) for part in parts]),
            )
        )
    return tuple(found)


def _log_density(quantiles: FloatArray, y: FloatArray) -> float:
    """Mean log density at ``y`` ``(n,)`` of distributions given by quantiles, ``(n, n_grid)``."""
    logs = []
    for row, at in zip(quantiles, y, strict=True):
        i = int(np.clip(np.searchsorted(row, at), 1, len(row) - 1))
        width = max(float(row[i] - row[i - 1]), 1e-12)
        logs.append(math.log((_GRID[i] - _GRID[i - 1]) / width))
    return float(np.mean(logs))
