"""Accuracy as a function of the loss on the answers."""

from __future__ import annotations

import numpy as np
import pytest

from carbs.analysis import fit_accuracy_law


def measured(n: int = 30, seed: int = 0, questions: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    L = np.sort(rng.uniform(0.3, 1.7, n))[::-1]
    return L, rng.binomial(questions, truth(L)) / questions


def truth(L: np.ndarray) -> np.ndarray:
    return np.asarray(0.25 + 0.65 / (1 + np.exp((L - 0.9) / 0.15)))


def test_a_known_sigmoid_comes_back_within_its_intervals() -> None:
    held = []
    for seed in range(12):
        law = fit_accuracy_law(*measured(seed=seed), n_resamples=60)
        summary = law.summary().set_index("coefficient")
        for name, value in {"ceiling": 0.9, "midpoint": 0.9, "width": 0.15}.items():
            held.append(summary.loc[name, "low"] <= value <= summary.loc[name, "high"])
    assert np.mean(held) > 0.75
    L = np.linspace(0.3, 1.7, 50)
    np.testing.assert_allclose(law.predict(L), truth(L), atol=0.02)
    assert "30 runs" in law.fitted_to


def test_better_models_than_any_seen_are_expected_in_a_wider_interval() -> None:
    L, accuracy = measured()
    law = fit_accuracy_law(L[:15], accuracy[:15])
    low, high = law.interval(np.array([L[10], 0.4]))
    assert high[1] - low[1] > 2 * (high[0] - low[0])
    assert low[1] < truth(np.array([0.4]))[0] < high[1] <= 1
    law_low, law_high = law.interval(L[10], new_measurement=False)
    assert low[0] < law_low < law_high < high[0]


def test_what_is_no_accuracy_is_named() -> None:
    L, accuracy = measured()
    accuracy[6] = 1.2
    with pytest.raises(ValueError, match=r"rows \[6\]"):
        fit_accuracy_law(L, accuracy)
    with pytest.raises(ValueError, match="needs 4 runs"):
        fit_accuracy_law([1.0, 0.9], [0.3, 0.4])
    with pytest.raises(ValueError, match="chance"):
        fit_accuracy_law([1.0, 0.9, 0.8, 0.7], [0.3, 0.4, 0.5, 0.6], chance=1.5)
