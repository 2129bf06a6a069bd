"""Accuracy as a function of the loss on the answers."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from carbs.analysis import AccuracyLaw, UndeterminedLawWarning, fit_accuracy_law, fit_loss_law


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


def task(seed: int, n: int = 24) -> tuple[np.ndarray, np.ndarray, int, float]:
    """Losses and accuracies of one simulated task, how many are seen, and its ceiling."""
    rng = np.random.default_rng(seed)
    L = np.sort(rng.uniform(rng.uniform(0.4, 0.9), 1.7, n))[::-1]
    ceiling, middle, width = rng.uniform(0.85, 1), rng.uniform(0.5, 1.2), rng.uniform(0.08, 0.2)
    risen = 0.25 + (ceiling - 0.25) / (1 + np.exp((L - middle) / width))
    return L, rng.binomial(2000, risen) / 2000, int(rng.choice([10, 14, 18])), ceiling


def test_intervals_hold_over_simulated_tasks_some_not_yet_above_chance() -> None:
    covered, ceilings = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndeterminedLawWarning)
        for seed in range(40):
            L, a, k, ceiling = task(seed)
            law = fit_accuracy_law(L[:k], a[:k])
            low, high = law.interval(L[k:])
            covered.append(np.mean((low <= a[k:]) & (a[k:] <= high)))
            row = law.summary().set_index("coefficient").loc["ceiling"]
            ceilings.append(row["low"] <= ceiling <= row["high"])
    assert 0.82 <= np.mean(covered) <= 0.98
    assert np.mean(ceilings) > 0.75


def test_a_task_that_has_begun_to_rise_is_not_said_to_stop_there() -> None:
    L = np.linspace(1.5, 1.05, 16)
    rng = np.random.default_rng(0)
    a = rng.binomial(2000, 0.24 + 0.7 / (1 + np.exp((L - 0.9) / 0.12))) / 2000
    assert a.max() < 0.45
    law = fit_accuracy_law(L, a, chance=0.24)
    row = law.summary().set_index("coefficient").loc["ceiling"]
    assert row["high"] > 0.9 and "near one" in row["note"]
    low, high = law.interval(0.85)
    assert low < 0.24 + 0.7 / (1 + np.exp((0.85 - 0.9) / 0.12)) < high


def test_a_plateau_overrules_the_prior_of_the_ceiling() -> None:
    L = np.linspace(1.8, 0.3, 40)
    rng = np.random.default_rng(0)
    a = rng.binomial(4000, 0.25 + 0.3 / (1 + np.exp((L - 1.2) / 0.1))) / 4000
    law = fit_accuracy_law(L, a)
    row = law.summary().set_index("coefficient").loc["ceiling"]
    assert 0.53 < row["low"] < row["high"] < 0.58 and not row["note"]


def test_what_has_not_risen_above_chance_is_said_and_widely_expected() -> None:
    L = np.linspace(1.6, 1.2, 12)
    a = np.random.default_rng(0).binomial(1000, 0.25, 12) / 1000
    with pytest.warns(UndeterminedLawWarning, match="not surely risen above chance"):
        law = fit_accuracy_law(L, a)
    low, high = law.interval(0.6)
    assert high - low > 0.4 and low < 0.35
    assert "not yet above chance" in law.fitted_to
    assert law.summary()["note"].ne("").all()


def test_an_accuracy_that_falls_as_the_loss_falls_is_refused() -> None:
    L, accuracy = measured()
    with pytest.raises(ValueError, match=r"falls as the loss falls.*no error rate"):
        fit_accuracy_law(L, 1 - accuracy)


def test_checkpoints_of_one_run_are_no_independent_evidence() -> None:
    rng = np.random.default_rng(0)
    runs = np.repeat(np.arange(4), 12)
    L = np.concatenate([np.linspace(1.6, end, 12) for end in (1.3, 1.2, 1.1, 1.0)])
    off = 0.02 * rng.standard_normal(4)[runs]
    a = truth(L) + off + 0.003 * rng.standard_normal(48)
    alone, grouped = fit_accuracy_law(L, a), fit_accuracy_law(L, a, groups=runs)

    def width(law: AccuracyLaw) -> float:
        low, high = law.interval(0.8, new_measurement=False)
        return float(high - low)

    assert width(grouped) > 1.2 * width(alone)
    assert "4 runs of 48 checkpoints" in grouped.fitted_to


def test_the_chain_from_scale_to_accuracy_has_one_interval() -> None:
    rng = np.random.default_rng(0)
    N = np.geomspace(1e8, 2e9, 6).repeat(4)
    D = N * np.tile([10.0, 20.0, 40.0, 80.0], 6)

    def answer_loss(N: float | np.ndarray, D: float | np.ndarray) -> np.ndarray:
        return np.asarray(0.4 + 300 * N**-0.32 + 400 * D**-0.3)

    L = answer_loss(N, D) * np.exp(0.004 * rng.standard_normal(24))
    a = rng.binomial(2000, truth(L)) / 2000
    loss_law, law = fit_loss_law(N, D, L, n_resamples=50), fit_accuracy_law(L, a)
    chain = law.along(loss_law)
    low, high = chain.interval(1.3e10, 2.6e11)
    there = truth(answer_loss(1.3e10, 2.6e11))
    assert low < there < high
    assert chain.predict(1.3e10, 2.6e11) == pytest.approx(there, abs=0.06)
    alone = law.interval(loss_law.predict(1.3e10, 2.6e11))
    assert high - low > alone[1] - alone[0]
    assert chain.predict(np.array([1e9, 1e10]), 1e11).shape == (2,)
    known = chain.interval(1.3e10, 2.6e11, new_measurement=False)
    assert low <= known[0] < known[1] <= high


def test_what_is_no_accuracy_is_named() -> None:
    L, accuracy = measured()
    accuracy[6] = 1.2
    with pytest.raises(ValueError, match=r"rows \[6\]"):
        fit_accuracy_law(L, accuracy)
    with pytest.raises(ValueError, match="needs 4 runs"):
        fit_accuracy_law([1.0, 0.9], [0.3, 0.4])
    with pytest.raises(ValueError, match="chance"):
        fit_accuracy_law([1.0, 0.9, 0.8, 0.7], [0.3, 0.4, 0.5, 0.6], chance=1.5)
