"""Fits of L(C) = E + k C^-g to data from known laws."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from carbs.analysis.laws.power_fits import fit_compute_law


def runs(
    E: float, k: float, g: float, noise: float = 0.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    C = np.geomspace(1.0, 1000.0, 14)
    return C, (E + k * C**-g) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(C)))


@given(
    E=st.floats(0.5, 3.0), k=st.floats(0.5, 4.0), g=st.floats(0.15, 0.8), unit=st.floats(1e-6, 1e18)
)
def test_exact_data_give_back_their_law_in_any_unit_of_compute(
    E: float, k: float, g: float, unit: float
) -> None:
    C, L = runs(E, k, g)
    law = fit_compute_law(C * unit, L, n_resamples=2)
    assert [law.E, law.g] == pytest.approx([E, g], rel=0.02)
    np.testing.assert_allclose(law.predict(C * unit), L, rtol=1e-3)


@pytest.mark.filterwarnings("ignore::carbs.analysis.UndeterminedLawWarning")
@pytest.mark.parametrize("noise", [0.01, 0.1])
def test_the_interval_holds_new_runs_within_the_range_and_widens_beyond_it(noise: float) -> None:
    inside = []
    for seed in range(20):
        C, L = runs(1.5, 2.0, 0.3, noise=noise, seed=seed)
        law = fit_compute_law(C, L, n_resamples=60, seed=seed)
        low, high = law.interval(np.array([30.0, 8000.0]))
        truth = (1.5 + 2.0 * 30.0**-0.3) * np.exp(
            noise * np.random.default_rng(100 + seed).standard_normal()
        )
        inside.append(low[0] <= truth <= high[0])
        law_low, law_high = law.interval(np.array([30.0, 8000.0]), new_measurement=False)
        assert law_high[1] - law_low[1] > law_high[0] - law_low[0]
    assert 0.75 <= np.mean(inside) <= 1.0


def test_where_the_law_is_is_known_better_than_where_a_run_will_be() -> None:
    law = fit_compute_law(*runs(1.5, 2.0, 0.3, noise=0.02))
    law_low, law_high = law.interval(30.0, new_measurement=False)
    run_low, run_high = law.interval(30.0)
    assert run_low < law_low < law_high < run_high


def test_one_wild_run_hardly_moves_the_law() -> None:
    C, L = runs(1.5, 2.0, 0.3, noise=0.003)
    L[4] *= 1.4
    law = fit_compute_law(C, L, n_resamples=2)
    np.testing.assert_allclose(law.predict(C), 1.5 + 2.0 * C**-0.3, rtol=0.02)


def test_the_summary_has_an_interval_around_each_coefficient() -> None:
    law = fit_compute_law(*runs(1.5, 2.0, 0.3, noise=0.01))
    summary = law.summary().set_index("coefficient")
    assert list(summary.index) == ["E", "k", "g"]
    assert (summary["low"] <= summary["high"]).all()
    assert "14 runs" in law.fitted_to


def test_bad_rows_are_named() -> None:
    C, L = runs(1.5, 2.0, 0.3)
    L[3], C[5] = np.nan, -1.0
    with pytest.raises(ValueError, match=r"rows \[3, 5\]"):
        fit_compute_law(C, L)
    with pytest.raises(ValueError, match="needs 4 runs"):
        fit_compute_law([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="equal length"):
        fit_compute_law([1.0, 2.0], [3.0])
