"""What a backtest shows its law, and how it counts."""

from __future__ import annotations

import numpy as np
import pytest

from carbs.analysis import backtest, fit_compute_law

C = np.geomspace(1.0, 1e4, 40)
L = (1.5 + 2 * C**-0.3) * np.exp(0.004 * np.random.default_rng(0).standard_normal(40))


class Constant:
    def __init__(self, C: np.ndarray, L: np.ndarray) -> None:
        self.seen, self.loss = C, float(L.min())

    def predict(self, C: np.ndarray) -> np.ndarray:
        return np.full(len(C), self.loss)

    def interval(self, C: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
        return self.predict(C) * 0.99, self.predict(C) * 1.01


def test_the_law_sees_the_cheap_runs_alone() -> None:
    seen = []

    def fit(C: np.ndarray, L: np.ndarray) -> Constant:
        seen.append(C)
        return Constant(C, L)

    tested = backtest(fit, C, loss=L, factors=(10, 100))
    assert [C.max() for C in seen] == [C[C <= 1e3].max(), C[C <= 1e2].max()]
    assert list(tested.splits["n_fitted"]) == [len(C) for C in seen]
    assert list(tested.splits["n_fitted"] + tested.splits["n_held_out"]) == [40, 40]
    runs = tested.runs
    expected = (runs["low"] <= runs["measured"]) & (runs["measured"] <= runs["high"])
    assert (runs["covered"] == expected).all()
    assert (tested.by_extrapolation["n_held_out"].sum()) == len(runs)


def test_a_run_is_never_on_both_sides() -> None:
    groups = np.arange(40) % 2  # two runs, each from cheap to dear

    def fit(C: np.ndarray, L: np.ndarray, groups: np.ndarray) -> Constant:
        return Constant(C, L)

    with pytest.raises(ValueError, match="none of the factors"):
        backtest(fit, C, loss=L, groups=groups)
    halves = np.arange(40) // 20
    assert backtest(fit, C, loss=L, factors=(3,), groups=halves).runs["n_fitted"].eq(20).all()


def test_a_true_law_is_found_to_be_one() -> None:
    tested = backtest(fit_compute_law, C, loss=L, factors=(10, 30))
    assert (tested.splits["mean_abs_error"] < 0.012).all()
    assert (tested.splits["coverage"] > 0.8).all()
