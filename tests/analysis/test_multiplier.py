"""Compute multipliers between recipes whose laws are known."""

from __future__ import annotations

import numpy as np
import pytest

from carbs.analysis.laws.multiplier import compute_multiplier

C = np.geomspace(1, 1000, 16)


def noisy(loss: np.ndarray, seed: int) -> np.ndarray:
    return np.asarray(loss * np.exp(0.001 * np.random.default_rng(seed).standard_normal(len(loss))))


def test_a_constant_multiplier_is_found() -> None:
    first, second = 1 + 2 * C**-0.3, 1 + 2 * (C / 2.5) ** -0.3
    found = compute_multiplier(C, noisy(first, 0), C, noisy(second, 1), at=[10.0, 100.0])
    np.testing.assert_allclose(found.median, 2.5, rtol=0.1)
    assert np.all((found.low < 2.5) & (found.high > 2.5))
    assert not len(found.crossings) and found.crossing_probability < 0.5


def test_a_small_scale_winner_that_loses_is_reported() -> None:
    first, second = 1 + 2 * C**-0.3, 1.2 + 1.6 * C**-0.3  # equal where 0.4 C^-0.3 = 0.2
    found = compute_multiplier(C, noisy(first, 0), C, noisy(second, 1), at=[2.0, 100.0])
    assert found.median[0] < 1 < found.median[1]
    assert found.crossings == pytest.approx([2 ** (1 / 0.3)], rel=0.2)
    assert found.crossing_probability > 0.9


def test_a_loss_that_the_other_never_reaches_needs_infinite_compute() -> None:
    first, second = 1 + 2 * C**-0.3, 2 + 2 * C**-0.3
    found = compute_multiplier(C, noisy(first, 0), C, noisy(second, 1), at=[1e6])
    assert np.isinf(found.median[0])
