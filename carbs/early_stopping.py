"""Which runs to stop early: those that will end off the Pareto front, with high probability.

A reference-class forecast with a conformal bound (Vovk et al. 2005, *Algorithmic Learning in a
Random World*; the split form of Papadopoulos et al. 2002): the curves of the finished runs say how
far a run still falls, and how much that varies.

Notation
--------
f       progress, the share of a run that is done, in (0, 1]
y(f)    output reported at f; y(1) is the output at the end; lower is better
E       a level somewhat below all outputs
drop    ``log(y(f) - E) - log(y(1) - E)``, how far a run still falls from f on
z       ``(drop - median) / spread``, median and spread (the median absolute deviation) over the
        finished runs at the same f
score   of a finished run: its largest z at any f; how far its curve was once above its end
n       number of finished runs with a curve
a       miss share

If the runs come in random order, a new run's score is above the ``floor((n + 1) a)``-th largest of
the finished runs' with a probability of at most a (but for what E, median and spread owe to the
finished runs alone). So with probability 1 - a its end lies, at *all*
its reports together, above the bound that this score gives at each. A run is stopped when even this
bound is worse than what a finished run reached at no more cost. While ``(n + 1) a < 1`` there is no
bound, and nothing is stopped.

A search does not run in random order, and runs on the front are not like all others: that the share
of them that is stopped stays below a is measured, in ``benchmarks/early_stopping.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from carbs.records import Direction
from carbs.spaces import FloatArray

MISS_SHARE = 0.05
MIN_PROGRESS = 0.2
# Where curves are compared.
_PLACES = np.linspace(0.05, 0.95, 19)
# How far E lies below the lowest value, in units of the distance from the best end to the median.
_LEVEL = 0.25


@dataclass(frozen=True)
class FinishedRun:
    """A run that was trained to its end.

    Attributes:
        curve: shape ``(t, 3)``: progress, output and cost so far of each report, by rising
            progress; empty where there were none.
        output, cost: of the whole run.

    Raises:
        ValueError: the curve has another shape.
    """

    curve: FloatArray
    output: float
    cost: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "curve", _as_curve(self.curve))


@dataclass(frozen=True)
class Forecast:
    """What is expected of the end of a run.

    Attributes:
        output: median.
        output_deviation: standard deviation, half of the middle 68%; positive.
        best_output: the end is no better with the probability that was asked for.
        cost: of the full run.
    """

    output: float
    output_deviation: float
    best_output: float
    cost: float


def forecast(
    curve: ArrayLike,
    finished: Sequence[FinishedRun],
    *,
    miss_share: float = MISS_SHARE,
    min_progress: float = MIN_PROGRESS,
    direction: Direction = "minimize",
) -> Forecast | None:
    """The end of a run, from its curve and those of finished runs.

    Args:
        curve: of the run so far, shape ``(t, 3)`` as in :class:`FinishedRun`.
        finished: runs over the same task. Those count whose curves start no later.
        miss_share: of the runs, so many may end better than their ``best_output``.
        min_progress: no forecast before it.
        direction: whether a low or a high output is good.

    Returns:
        None while the run has not come far enough, is at its end, or too few runs have finished.

    Raises:
        ValueError: the miss share is not in (0, 1), or the curve of another shape.
    """
    curve = _as_curve(curve)
    if not 0 < miss_share < 1:
        raise ValueError(f"miss_share is {miss_share}, expected a share in (0, 1), such as 0.05")
    if not len(curve) or not min_progress <= curve[-1, 0] < 1:
        return None
    progress, _, cost = curve[-1]
    start = max(min_progress, curve[0, 0])
    peers = [run for run in finished if len(run.curve) and run.curve[0, 0] <= start]
    rank = int((len(peers) + 1) * miss_share)
    if rank == 0:
        return None

    sign = 1.0 if direction == "minimize" else -1.0
    now = sign * curve[-1, 1]
    ends = sign * np.array([run.output for run in peers])
    # Wherever this run may have been looked at, and now.
    places = np.append(_PLACES[start <= _PLACES], progress)
    outputs = sign * np.stack([_interpolated(run, places) for run in peers])
    lowest = min(now, ends.min(), outputs.min())
    margin = max(_LEVEL * (np.median(ends) - ends.min()), 1e-9 * (1 + abs(lowest)))
    level = lowest - margin

    drops = np.log(outputs - level) - np.log(ends - level)[:, None]
    medians = np.median(drops, axis=0)
    spreads = np.maximum(np.median(np.abs(drops - medians), axis=0), 1e-9)
    scores = np.max((drops - medians) / spreads, axis=1)
    # A run may at the least stay where it is.
    largest = max(medians[-1] + np.sort(scores)[-rank] * spreads[-1], 0.0)
    low, middle, high = np.quantile(np.exp(-drops[:, -1]), (0.16, 0.5, 0.84))
    above = now - level
    return Forecast(
        output=float(sign * (level + above * middle)),
        output_deviation=max(float(above * (high - low) / 2), np.finfo(float).tiny),
        best_output=float(sign * (level + above * np.exp(-largest))),
        cost=float(cost / progress),
    )


def is_off_front(
    end: Forecast, finished: Sequence[FinishedRun], *, direction: Direction = "minimize"
) -> bool:
    """Whether some run of no more cost has a better output than this one at its best."""
    sign = 1.0 if direction == "minimize" else -1.0
    reached = [sign * run.output for run in finished if run.cost <= end.cost]
    return bool(reached) and sign * end.best_output > min(reached)


def _as_curve(rows: ArrayLike) -> FloatArray:
    curve = np.asarray(rows, dtype=float)
    if curve.size == 0:
        return curve.reshape(0, 3)
    if curve.ndim != 2 or curve.shape[1] != 3:
        raise ValueError(
            f"a curve has the shape {curve.shape}, expected (t, 3): rows of progress, output, cost"
        )
    return curve


def _interpolated(run: FinishedRun, places: FloatArray) -> FloatArray:
    """Outputs of a run at these places of its progress, between its reports and its end."""
    progress, outputs, _ = run.curve.T
    outputs_there = np.interp(places, np.append(progress, 1.0), np.append(outputs, run.output))
    return np.asarray(outputs_there)
