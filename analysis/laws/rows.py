"""What is asked of the rows and numbers that a law is given."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from carbs.spaces import FloatArray


def positive(**values: ArrayLike) -> list[FloatArray]:
    arrays = [np.asarray(value, dtype=float) for value in values.values()]
    for name, array in zip(values, arrays, strict=True):
        if not (np.isfinite(array) & (array > 0)).all():
            raise ValueError(f"{name} must be finite and positive")
    return arrays


def positive_rows(**columns: ArrayLike) -> list[FloatArray]:
    """Columns of equal length, finite and positive; errors have the :func:`names_of_rows`."""
    arrays = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    shapes = {array.shape for array in arrays.values()}
    if len(shapes) > 1 or any(array.ndim != 1 for array in arrays.values()):
        told = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(f"{told} must be lists of equal length")
    wrong = np.flatnonzero(
        np.any([~(np.isfinite(array) & (array > 0)) for array in arrays.values()], axis=0)
    )
    if len(wrong):
        rows = names_of_rows(len(next(iter(arrays.values()))), *columns.values())[wrong].tolist()
        raise ValueError(f"rows {rows} have a {' or '.join(arrays)} not finite and positive")
    return list(arrays.values())


def names_of_rows(n: int, *columns: object) -> np.ndarray:
    """By the index of the first of these that has one of n different labels, else 0 to n - 1."""
    for column in columns:
        if isinstance(column, pd.Series) and len(column) == n and column.index.is_unique:
            return column.index.to_numpy()
    return np.arange(n)


def runs_of_rows(groups: ArrayLike | None, n: int) -> np.ndarray:
    """Which run each row is of, ``(n,)``; each of its own where none are given."""
    if groups is None:
        return np.arange(n)
    labels = np.asarray(groups)
    if labels.shape != (n,):
        raise ValueError(f"groups {labels.shape} must name the run of each of the {n} rows")
    nameless = names_of_rows(n, groups)[pd.isna(labels)]
    if len(nameless):
        raise ValueError(f"rows {nameless.tolist()} have no group: name the run of each row")
    return labels


def check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(
            f"the level of an interval lies between 0 and 1, as 0.9 for 90%, but is {level}"
        )
