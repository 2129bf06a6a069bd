"""Laws of the data mix over sizes of model."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from carbs.analysis import (
    ExtrapolationWarning,
    ScaledMixingLaw,
    fit_mixing_law,
    fit_scaled_mixing_law,
)

NAMES = ["web", "code", "books", "noise"]
SMALL, MIDDLE, LARGE = (1e6, 1e8), (1e7, 1e9), (1e8, 1e10)


def loss_of(W: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """The small model learns from the web; the larger it is, the more from books."""
    N, D = size
    decades = np.log10(N / SMALL[0])
    web, books = 1 - 0.3 * decades, 0.2 + 0.35 * decades
    skill = web * W[:, 0] + books * W[:, 2] + 0.5 * W[:, 1] + 0.02
    return np.asarray(1.5 + 50 * N**-0.3 + 60 * D**-0.3 + 0.4 * skill**-0.3 + 0.2 * W[:, 3])


def runs(*counts: int, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    parts = []
    for size, n in zip((SMALL, MIDDLE, LARGE), counts, strict=False):
        W = rng.dirichlet(np.full(4, 0.7), n)
        loss = loss_of(W, size) * np.exp(0.002 * rng.standard_normal(n))
        parts.append(pd.DataFrame(W, columns=NAMES).assign(n=size[0], d=size[1], loss=loss))
    return pd.concat(parts, ignore_index=True)


def fitted(table: pd.DataFrame) -> ScaledMixingLaw:
    return fit_scaled_mixing_law(table[NAMES], table["loss"], table["n"], table["d"])


@pytest.fixture(scope="module")
def law() -> ScaledMixingLaw:
    return fitted(runs(60, 24))


def test_some_larger_runs_tell_how_effects_move(law: ScaledMixingLaw) -> None:
    W = np.random.default_rng(1).dirichlet(np.full(4, 0.7), 300)
    for size, least in ((MIDDLE, 0.97), (LARGE, 0.9)):
        truth, there = loss_of(W, size), law.at(*size)
        assert there.rank_correlation(W, truth) > least
        assert there.rank_correlation(W, truth) > law.base.rank_correlation(W, truth) + 0.03
        low, high = there.interval(W)
        assert np.mean((low <= truth) & (truth <= high)) > 0.8
    np.testing.assert_allclose(law.at(*MIDDLE).predict(W), loss_of(W, MIDDLE), rtol=0.05)
    assert law.sizes["n_runs"].tolist() == [60, 24]
    assert "60 runs of 1e+06 parameters and 1e+08 tokens; 24 runs of 1e+07" in law.fitted_to


def test_where_effects_stay_a_few_larger_runs_take_nothing_from_the_small_ones() -> None:
    rng = np.random.default_rng(0)
    W = rng.dirichlet(np.full(4, 0.7), 66)
    N = np.repeat([1e6, 1e7], [60, 6])
    loss = loss_of(W, SMALL) * (N / 1e6) ** -0.1 * np.exp(0.002 * rng.standard_normal(66))
    law = fit_scaled_mixing_law(W, loss, N, 100 * N)
    held = rng.dirichlet(np.full(4, 0.7), 300)
    truth = loss_of(held, SMALL) * 10**-0.1
    there = law.at(1e7, 1e9)
    assert there.rank_correlation(held, truth) > law.base.rank_correlation(held, truth) - 0.01
    low, high = there.interval(held)
    assert np.mean((low <= truth) & (truth <= high)) > 0.8
    np.testing.assert_allclose(there.predict(held), truth, rtol=0.05)


def test_the_best_mix_of_a_larger_model_is_another() -> None:
    law = fitted(runs(60, 24, 10))
    best = law.at(*LARGE).best_mix(n_samples=50)
    everywhere = loss_of(np.random.default_rng(2).dirichlet(np.ones(4), 20_000), LARGE).min()
    small = law.base.best_mix(n_samples=50)
    regret, of_small = (
        loss_of(one.weights[None], LARGE)[0] / everywhere - 1 for one in (best, small)
    )
    assert regret < 0.01 and regret < of_small / 3
    assert small.weights[0] > 0.5 > small.weights[2] and best.weights[2] > 0.5 > best.weights[0]
    assert (best.low <= best.weights).all() and (best.weights <= best.high).all()
    assert best.table()["domain"].tolist() == NAMES


def test_more_runs_are_worth_less_the_more_there_were(law: ScaledMixingLaw) -> None:
    table = law.at(*MIDDLE).worth_of_runs([0, 4, 16])
    assert table["gain"][0] == 0 and (table["gain"].diff().dropna() >= 0).all()
    assert (table["loss"].diff().dropna() <= 0).all()
    with_few = fitted(runs(60, 4)).at(*MIDDLE).worth_of_runs([16])
    assert with_few["gain"][0] > table["gain"][2]
    chosen = law.at(*MIDDLE).mixtures_to_run(4)
    assert chosen.columns.tolist() == NAMES and 1 <= len(chosen) <= 4
    np.testing.assert_allclose(chosen.sum(axis=1), 1)
    best = loss_of(law.at(*MIDDLE).best_mix(n_samples=2).weights[None], MIDDLE)[0]
    assert (loss_of(chosen.to_numpy(), MIDDLE) < 1.05 * best).all()


def test_what_more_of_a_domain_does_at_either_size(law: ScaledMixingLaw) -> None:
    table = law.summary().set_index("domain")
    assert table["effect"].idxmin() == "web" and table["effect"]["noise"] > 0
    for end in ("", "_largest"):
        middle = table[f"effect{end}"]
        assert (table[f"low{end}"] <= middle).all() and (middle <= table[f"high{end}"]).all()
    assert table["effect_largest"]["books"] < table["effect"]["books"]
    W = np.array([[0.25, 0.25, 0.25, 0.25]])
    more = 0.9 * W + 0.1 * np.eye(4)
    effects = law.at(*MIDDLE).effects(W, points=0.1)
    truth = 100 * (loss_of(more, MIDDLE) / loss_of(W, MIDDLE) - 1)
    np.testing.assert_allclose(effects["effect"], truth, atol=0.5)
    with pytest.raises(ValueError, match=r"points are a share between 0 and 1"):
        law.base.effects(points=5)


def test_frames_are_read_by_name_and_sizes_within_a_hundredth_are_one() -> None:
    table = runs(20, 10)
    moved = table.assign(n=table["n"] * (1 + 1e-3 * np.arange(len(table)) / len(table)))
    law = fitted(moved)
    assert law.sizes["n_runs"].tolist() == [20, 10]
    frame = table[NAMES]
    there = law.at(*MIDDLE)
    np.testing.assert_allclose(there.predict(frame[NAMES[::-1]]), there.predict(frame))
    near = law.at(MIDDLE[0] * 1.002, MIDDLE[1])
    np.testing.assert_array_equal(near.predict(frame), there.predict(frame))


def test_what_tells_no_law_over_sizes_is_said(law: ScaledMixingLaw) -> None:
    with pytest.raises(ValueError, match="all runs are of one size: fit_mixing_law"):
        fitted(runs(20))
    with pytest.raises(ValueError, match=r"8 mixtures at one size, .* 2 sizes with 7 at most"):
        fitted(runs(7, 6))
    table = runs(20, 10)
    with pytest.raises(ValueError, match=r"rows \[3\] have a loss or n_params or n_tokens"):
        fitted(table.assign(d=table["d"].where(table.index != 3, 0.0)))
    with pytest.raises(ValueError, match="equally many rows"):
        fit_scaled_mixing_law(table[NAMES][:5], table["loss"], table["n"], table["d"])
    with pytest.warns(ExtrapolationWarning, match="how effects move so far is a guess"):
        law.at(1e9, 1e11)
    with pytest.raises(ValueError, match="n_params must be finite and positive"):
        law.at(-1, 1e9)
    with pytest.raises(ValueError, match="counts are numbers of runs"):
        law.at(*MIDDLE).worth_of_runs([-1, 4])


def test_the_base_is_the_law_of_the_small_runs_alone() -> None:
    table = runs(30, 10)
    there = fitted(table).at(*SMALL)
    held = np.random.default_rng(1).dirichlet(np.full(4, 0.7), 100)
    np.testing.assert_allclose(there.predict(held), loss_of(held, SMALL), rtol=0.03)
    small = table[table["n"] == SMALL[0]]
    alone = fit_mixing_law(small[NAMES], small["loss"])
    np.testing.assert_array_equal(
        fitted(table).base.predict(table[NAMES]), alone.predict(table[NAMES])
    )
