"""The Pareto front of cost against output, and the area it dominates.

Notation
--------
costs, outputs   shape ``(n,)``; lower is better in both
front            the points that no other beats in both, cheapest first
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from carbs.spaces import FloatArray


def pareto_front(costs: FloatArray, outputs: FloatArray) -> NDArray[np.intp]:
    """Indices of the front, by rising cost and so by falling output.

    A point is on the front when no other has at most its cost and at most its output, one of them
    strictly. Of points equal in both, the first is kept.
    """
    order = np.lexsort((outputs, costs))
    best = np.minimum.accumulate(np.asarray(outputs, dtype=float)[order])
    keeps = np.ones(len(order), dtype=bool)
    keeps[1:] = best[1:] < best[:-1]
    return order[keeps]


def most_telling(costs: FloatArray, outputs: FloatArray, n_most: int) -> NDArray[np.intp]:
    """Indices of the runs that tell most of the front, in their order.

    All, up to ``n_most``. Of more, half of that many that lie nearest the front, and the other
    half evenly spread over the rest: thinking must not grow with the length of a search.
    """
    n = len(outputs)
    if n <= n_most:
        return np.arange(n)
    order = np.argsort(costs, kind="stable")
    above = np.empty(n)
    above[order] = outputs[order] - np.minimum.accumulate(outputs[order])
    ranked = np.argsort(above, kind="stable")
    near, rest = ranked[: n_most // 2], np.sort(ranked[n_most // 2 :])
    spread = np.linspace(0, len(rest) - 1, n_most - len(near)).round().astype(int)
    return np.sort(np.concatenate([near, rest[spread]]))


def hypervolume(
    costs: FloatArray, outputs: FloatArray, reference_cost: float, reference_output: float
) -> float:
    """Area dominated by the points and bounded by the reference point.

    Pass logarithms of cost for the measure that this project reports.
    """
    costs, outputs = np.asarray(costs, dtype=float), np.asarray(outputs, dtype=float)
    counts = (costs < reference_cost) & (outputs < reference_output)
    costs, outputs = costs[counts], outputs[counts]
    if not len(costs):
        return 0.0
    front = pareto_front(costs, outputs)
    widths = np.diff(np.append(costs[front], reference_cost))
    return float(np.sum(widths * (reference_output - outputs[front])))
