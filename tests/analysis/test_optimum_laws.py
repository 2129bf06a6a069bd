"""Optima over a grid of runs, of known and of published laws."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import pytest

from carbs.analysis import UndeterminedLawWarning, fit_optimum_law, regret


def grid(noise: float = 0.001, cells: int = 6, seed: int = 0) -> pd.DataFrame:
    """lr* = 2 N^-0.4 D^0.2 and batch* = 3 D^0.5, in bowls steeper towards high learning rates."""
    rng = np.random.default_rng(seed)
    rows = []
    for N, D in [(1e8, 2e9), (1e8, 1e10), (2e8, 4e9), (4e8, 4e9), (4e8, 2e10), (8e8, 1e10)][:cells]:
        best = np.log(2 * N**-0.4 * D**0.2), np.log(3 * D**0.5)
        for u in np.arange(-4, 5) * 0.35 + rng.uniform(-0.15, 0.15):
            for v in np.arange(-4, 5) * 0.35 + rng.uniform(-0.15, 0.15):
                bowl = 0.007 * u**2 + 0.0015 * u**3 + 0.006 * v**2 - 0.004 * u * v
                loss = (2 + 1e2 * N**-0.3 + 1e2 * D**-0.25) * np.exp(
                    bowl + noise * rng.standard_normal()
                )
                rows.append((N, D, np.exp(best[0] + u), np.exp(best[1] + v), loss))
    return pd.DataFrame(rows, columns=["n_params", "n_tokens", "lr", "batch", "loss"])


TRUE = {
    "lr ~ n_params": -0.4,
    "lr ~ n_tokens": 0.2,
    "batch ~ n_params": 0.0,
    "batch ~ n_tokens": 0.5,
}


def test_a_known_law_comes_back() -> None:
    law = fit_optimum_law(grid(), ["lr", "batch"], ["n_params", "n_tokens"], n_resamples=50)
    summary = law.summary(level=0.95).set_index("coefficient")
    for name, exponent in TRUE.items():
        assert summary.loc[name, "estimate"] == pytest.approx(exponent, abs=0.08)
        assert summary.loc[name, "low"] <= exponent <= summary.loc[name, "high"]
    far = law.predict(n_params=3e9, n_tokens=1e11)
    assert set(far) == {"lr", "batch"}
    assert far["lr"] == pytest.approx(2 * 3e9**-0.4 * 1e11**0.2, rel=0.2)
    assert far["batch"] == pytest.approx(3 * 1e11**0.5, rel=0.25)
    low, high = law.interval(n_params=3e9, n_tokens=1e11)["lr"]
    assert low < far["lr"] < high
    own = law.optima.set_index(["n_params", "n_tokens"])
    assert (
        (
            own["lr"]
            / (2 * own.index.get_level_values(0) ** -0.4 * own.index.get_level_values(1) ** 0.2)
        )
        .between(0.8, 1.25)
        .all()
    )
    assert (own["lr_low"] < own["lr_high"]).all()


def test_one_hyperparameter_over_one_scale() -> None:
    runs = grid(cells=2).groupby(["n_tokens", "lr"], as_index=False)["loss"].min()
    law = fit_optimum_law(runs, ["lr"], ["n_tokens"], n_resamples=20)
    best = law.predict(n_tokens=[2e9, 1e10])["lr"]
    assert best == pytest.approx(2 * 1e8**-0.4 * np.array([2e9, 1e10]) ** 0.2, rel=0.1)


def test_an_exponent_that_no_cell_tells_is_not_claimed_to_be_known() -> None:
    runs = grid(cells=2)  # one model size
    with pytest.warns(UndeterminedLawWarning, match="n_params is 1e\\+08 in all runs"):
        law = fit_optimum_law(runs, ["lr", "batch"], ["n_params", "n_tokens"], n_resamples=60)
    table = law.summary().set_index("coefficient")
    row = table.loc["lr ~ n_params"]
    assert row["high"] - row["low"] > 0.8
    assert law.undetermined == ("lr ~ n_params", "batch ~ n_params")
    assert "prior" in row["note"] and not table.loc["lr ~ n_tokens", "note"]
    assert "hardly tell lr ~ n_params" in law.fitted_to


def scattered(n: int, seed: int = 0) -> pd.DataFrame:
    """The law and the bowls of :func:`grid`, each run at a scale of its own; some diverge."""
    rng = np.random.default_rng(seed)
    N, D = 10 ** rng.uniform(8, 9, n), 10 ** rng.uniform(9.3, 10.3, n)
    u, v = rng.uniform(-1.5, 1.5, (2, n))
    bowl = 0.07 * u**2 + 0.015 * u**3 + 0.06 * v**2 - 0.04 * u * v
    bowl += np.where((u > 1) & (rng.random(n) < 0.5), 1.0, 0.0)
    loss = (2 + 1e2 * N**-0.3 + 1e2 * D**-0.25) * np.exp(bowl + 0.001 * rng.standard_normal(n))
    lr, batch = 2 * N**-0.4 * D**0.2 * np.exp(u), 3 * D**0.5 * np.exp(v)
    return pd.DataFrame({"n_params": N, "n_tokens": D, "lr": lr, "batch": batch, "loss": loss})


def test_runs_that_each_have_a_scale_of_their_own_tell_the_law() -> None:
    names, scales = ["lr", "batch"], ["n_params", "n_tokens"]
    law = fit_optimum_law(scattered(80), names, scales, n_resamples=40)
    table = law.summary(level=0.98).set_index("coefficient")
    for name, exponent in TRUE.items():
        assert table.loc[name, "estimate"] == pytest.approx(exponent, abs=0.2)
        assert table.loc[name, "low"] <= exponent <= table.loc[name, "high"]
    best = law.predict(n_params=3e8, n_tokens=6e9)
    assert best["lr"] == pytest.approx(2 * 3e8**-0.4 * 6e9**0.2, rel=0.2)
    assert best["batch"] == pytest.approx(3 * 6e9**0.5, rel=0.2)
    assert law.optima.empty and "of 80 runs, those near the optimum" in law.fitted_to


def test_few_runs_at_each_scale_are_none_too_few() -> None:
    runs = grid().groupby(["n_params", "n_tokens"]).sample(8, random_state=0)
    law = fit_optimum_law(runs, ["lr", "batch"], ["n_params", "n_tokens"], n_resamples=20)
    far = law.predict(n_params=8e8, n_tokens=2e10)
    assert far["lr"] == pytest.approx(2 * 8e8**-0.4 * 2e10**0.2, rel=0.4)
    assert far["batch"] == pytest.approx(3 * 2e10**0.5, rel=0.5)
    with pytest.warns(UndeterminedLawWarning, match="20 runs are few for 12 coefficients"):
        fit_optimum_law(scattered(20), ["lr", "batch"], ["n_params", "n_tokens"], n_resamples=2)
    with pytest.raises(ValueError, match=r"has 12 coefficients and needs as many runs, but .* 10"):
        fit_optimum_law(scattered(10), ["lr", "batch"], ["n_params", "n_tokens"])


def test_scales_within_a_hundredth_of_each_other_are_one() -> None:
    runs = grid()
    moved = runs.assign(n_params=runs["n_params"] * (1 + 1e-3 * np.sin(np.arange(len(runs)))))
    names, scales = ["lr", "batch"], ["n_params", "n_tokens"]
    law = fit_optimum_law(moved, names, scales, n_resamples=2)
    assert len(law.optima) == 6
    assert law.exponents == pytest.approx(
        fit_optimum_law(runs, names, scales, n_resamples=2).exponents, abs=0.01
    )


def test_families_have_levels_of_their_own_and_share_exponents() -> None:
    """Two model sizes of one family, another two of the other: neither alone tells lr ~ N."""
    dense, sparse = grid(), grid(seed=1)
    sparse = sparse.assign(loss=0.9 * sparse["loss"], lr=3 * sparse["lr"])
    runs = pd.concat(
        [
            dense[dense["n_params"] < 3e8].assign(kind="dense"),
            sparse[sparse["n_params"] > 1.5e8].assign(kind="sparse"),
        ],
        ignore_index=True,
    )
    law = fit_optimum_law(
        runs, ["lr", "batch"], ["n_params", "n_tokens"], family="kind", n_resamples=20
    )
    assert law.families == ("dense", "sparse")
    assert law.optima["kind"].tolist() == ["dense"] * 3 + ["sparse"] * 4
    assert law.exponents == pytest.approx(np.array([[-0.4, 0.2], [0.0, 0.5]]), abs=0.1)
    at = {"n_params": 8e8, "n_tokens": 1e10}
    of_dense = law.predict(kind="dense", **at)
    of_sparse = law.predict(kind="sparse", **at)
    assert of_sparse["lr"] / of_dense["lr"] == pytest.approx(3, rel=0.2)
    assert of_sparse["batch"] / of_dense["batch"] == pytest.approx(1, rel=0.2)
    low, high = law.interval(kind="sparse", **at)["lr"]
    assert low < 3 * 2 * 8e8**-0.4 * 1e10**0.2 < high
    with pytest.raises(ValueError, match="kind is one of dense, sparse, not 'moe'"):
        law.predict(kind="moe", **at)
    with pytest.raises(ValueError, match="depends on kind, n_params, n_tokens"):
        law.predict(**at)
    runs.loc[3, "kind"] = None
    with pytest.raises(ValueError, match=r"rows \[3\] have no kind"):
        fit_optimum_law(runs, ["lr"], ["n_params"], family="kind")


def test_an_optimum_at_the_edge_of_what_was_tried_is_doubted() -> None:
    runs = grid()
    for kept, way in {"lr < 0.05": "more", "lr > 0.13": "less"}.items():
        said = rf"best lr is at the edge of what was tried \(.*\) at \d of 6 scales.*: try {way}"
        with pytest.warns(UndeterminedLawWarning, match=said):
            law = fit_optimum_law(runs.query(kept), ["lr"], ["n_params", "n_tokens"])
        assert "best lr is at the edge" in law.fitted_to


def test_hyperparameters_of_one_or_two_values_have_no_bowl() -> None:
    runs = grid(cells=2)
    with pytest.raises(ValueError, match=r"wd has one value at each scale.*leave it out"):
        fit_optimum_law(runs.assign(wd=0.1), ["lr", "wd"], ["n_tokens"])
    two = runs.groupby("n_tokens")["lr"].transform(lambda lr: lr.rank(method="dense"))
    with pytest.warns(UndeterminedLawWarning, match="lr has no more than two values at a scale"):
        fit_optimum_law(runs[two.isin([4, 6])], ["lr"], ["n_tokens"], n_resamples=5)


def test_the_name_of_a_column_is_no_list_of_them() -> None:
    with pytest.raises(ValueError, match=r"optimum_of is a list of columns: write \['lr'\]"):
        fit_optimum_law(grid(cells=2), "lr", ["n_tokens"])


def test_what_it_cannot_use_is_said() -> None:
    runs = grid(cells=3)
    runs.loc[5, "loss"] = np.inf
    with pytest.raises(ValueError, match=r"rows \[5\]"):
        fit_optimum_law(runs, ["lr"], ["n_params"])
    with pytest.raises(ValueError, match="no column width"):
        fit_optimum_law(runs, ["lr"], ["width"])
    with pytest.raises(ValueError, match="one value of n_params, n_tokens"):
        fit_optimum_law(grid(cells=1), ["lr", "batch"], ["n_params", "n_tokens"])
    law = fit_optimum_law(grid(cells=2), ["lr"], ["n_tokens"], n_resamples=2)
    with pytest.raises(ValueError, match="depends on n_tokens"):
        law.predict(n_params=1e9)
    with pytest.raises(ValueError, match=r"0\.9 for 90%, but is 90"):
        law.interval(n_tokens=1e9, level=90)


def test_regret_is_nothing_at_the_best_run_and_between_runs_of_the_line_between() -> None:
    cell = pd.DataFrame({"lr": [1.0, 2.0, 4.0], "loss": [3.0, 2.0, 2.5]})
    assert regret(cell, {"lr": 2.0}) == 0
    assert regret(cell, {"lr": 8**0.5}) == pytest.approx(0.125)
    assert regret(cell, {"lr": 0.1}) == pytest.approx(0.5)


@pytest.mark.parametrize(("factor", "most"), [(10, 0.0011), (20, 0.0012)])
def test_the_published_grid_extrapolates(
    published: Callable[[str], pd.DataFrame], factor: int, most: float
) -> None:
    runs = published("steplaw_dense.csv")
    names, scales = ["lr", "batch_size_tokens"], ["n_params", "n_tokens"]
    cheap = runs[runs["flops"] <= runs["flops"].max() / factor]
    law = fit_optimum_law(cheap, names, scales, n_resamples=2)

    def regrets() -> Iterator[float]:
        for (N, D), cell in runs[runs["flops"] > runs["flops"].max() / 10].groupby(scales):
            best = law.predict(n_params=N, n_tokens=D)
            yield regret(cell, {name: float(best[name]) for name in names})

    assert np.mean(list(regrets())) < most
