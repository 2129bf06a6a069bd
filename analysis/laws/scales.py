"""Scales of runs: which of them are one."""

from __future__ import annotations

import numpy as np

from carbs.spaces import FloatArray

# In logs: sizes that nobody means to differ, as those of models with other shapes.
ALIKE = 0.01


def distinct(
    log_scales: FloatArray, kind: np.ndarray | None = None
) -> tuple[FloatArray, np.ndarray, np.ndarray]:
    """Scales that differ, where those within a hundredth of each other are one.

    Args:
        log_scales: of each run, shape ``(n, k)``.
        kind: of each run, whole numbers ``(n,)``: scales of other kinds are others.

    Returns:
        The mean logs of each, ``(m, k)``; which one a run is at, ``(n,)``; and a run that is at
        each, ``(m,)``.
    """
    labels = [np.zeros(len(log_scales), dtype=int) if kind is None else kind]
    for column in log_scales.T:
        order = np.argsort(column, kind="stable")
        label = np.zeros(len(column), dtype=int)
        label[order[1:]] = np.cumsum(np.diff(column[order]) > ALIKE)
        labels.append(label)
    _, first, at = np.unique(
        np.stack(labels, axis=1), axis=0, return_index=True, return_inverse=True
    )
    at = at.reshape(-1)
    counts = np.bincount(at)
    means = np.stack([np.bincount(at, column) / counts for column in log_scales.T], axis=1)
    return means, at, first
