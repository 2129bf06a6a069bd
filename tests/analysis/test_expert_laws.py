"""Laws of mixtures of experts, on runs from known laws."""

from __future__ import annotations

import numpy as np
import pytest

from carbs.analysis import ExpertLaw, UndeterminedLawWarning, fit_expert_law
from carbs.analysis.laws.experts import worth_of_expansion

E, ALPHA, BETA, DELTA, OMEGA, GAMMA, ZETA, KAPPA = 1.7, 0.32, 0.29, 0.15, 0.06, 0.01, 0.01, 0.1


def truth(
    n_active: np.ndarray, expansion: np.ndarray, n_tokens: np.ndarray, granularity: np.ndarray
) -> np.ndarray:
    n, d = np.log(n_active / 3e8), np.log(n_tokens / 6e9)
    e, g = np.log(worth_of_expansion(expansion)), np.log(granularity)
    of_N = 0.4 * np.exp(-ALPHA * n - DELTA * e + GAMMA * n * e - KAPPA * g)
    return np.asarray(E + of_N + 0.45 * np.exp(-BETA * d - OMEGA * e + ZETA * d * e))


def runs(n: int = 80, noise: float = 0.003, seed: int = 0) -> tuple[np.ndarray, ...]:
    """n_active, expansion, n_tokens, granularity, loss; from 1e18 to 1e21 FLOPs."""
    rng = np.random.default_rng(seed)
    N = np.sqrt(10 ** rng.uniform(18, 21, n) / 6 / (20 * np.exp(rng.normal(0, 1, n))))
    D = 20 * N * np.exp(rng.normal(0, 1, n))
    X, G = rng.choice([1, 4, 8, 16, 32], n), rng.choice([1, 2, 4, 8], n)
    return N, X, D, G, truth(N, X, D, G) * np.exp(noise * rng.standard_normal(n))


@pytest.fixture(scope="module")
def law() -> ExpertLaw:
    N, X, D, G, L = runs()
    return fit_expert_law(N * X, N, D, L, granularity=G, n_resamples=40)


def test_runs_give_back_their_law(law: ExpertLaw) -> None:
    table = law.summary(0.98).set_index("coefficient")
    assert list(table.index) == ["E", "alpha", "beta", "delta", "omega", "gamma", "zeta", "kappa"]
    for name, value in {"E": E, "kappa": KAPPA, "gamma": GAMMA, "zeta": ZETA}.items():
        assert table.loc[name, "low"] <= value <= table.loc[name, "high"]
    assert not law.doubts and "80 runs" in law.fitted_to


def test_dear_runs_lie_where_they_were_expected() -> None:
    errors, inside = [], []
    for seed in range(6):
        N, X, D, G, L = runs(seed=seed)
        compute = 6 * N * D
        cheap = compute <= compute.max() / 10
        law = fit_expert_law(
            (N * X)[cheap], N[cheap], D[cheap], L[cheap], granularity=G[cheap], n_resamples=2
        )
        dear = [column[~cheap] for column in (N, X, D, G)]
        low, high = law.interval(*dear)
        errors.append(np.abs(law.predict(*dear) / L[~cheap] - 1).mean())
        inside.append(np.mean((low <= L[~cheap]) & (L[~cheap] <= high)))
    assert np.mean(errors) < 0.008  # 5% without the columns of experts
    assert np.mean(inside) > 0.8


def test_the_optimum_of_a_budget(law: ExpertLaw) -> None:
    C = 1e21
    N = np.geomspace(1e7, 1e11, 4001)
    for expansion in (1.0, 16.0):
        best = law.compute_optimal(C, expansion, granularity=4.0)
        assert 6 * best.n_active * best.n_tokens == pytest.approx(C)
        where = N[np.argmin(truth(N, expansion, C / 6 / N, 4.0))]
        assert best.n_active_interval[0] <= where <= best.n_active_interval[1]
        assert best.loss == pytest.approx(float(truth(where, expansion, C / 6 / where, 4.0)), 0.01)
    assert best.loss_interval[0] < best.loss < best.loss_interval[1]


def test_more_experts_are_worth_more_until_they_are_not() -> None:
    np.testing.assert_allclose(worth_of_expansion([1.0, 2.0]), [1.0, 2.0], rtol=0.01)
    assert worth_of_expansion(1e9) == pytest.approx(512)


def test_experts_may_be_counted_and_granularity_left_out() -> None:
    N, X, D, _, L = runs(40)
    counted = fit_expert_law(N * 2, N, D, L, n_experts=X, n_resamples=2)
    shared = fit_expert_law(N * X, N, D, L, n_resamples=2)
    assert counted.kappa is None and "kappa" not in list(counted.summary()["coefficient"])
    assert counted.predict(1e9, 8, 2e10) == pytest.approx(shared.predict(1e9, 8, 2e10))


def test_what_the_runs_do_not_tell_is_named_and_nonsense_refused() -> None:
    N, _, D, _, L = runs(40)
    with pytest.warns(UndeterminedLawWarning, match="expansion hardly varies"):
        law = fit_expert_law(8 * N, N, D, L, n_resamples=20)
    assert set(law.undetermined) >= {"delta", "omega", "gamma", "zeta"}
    with pytest.raises(ValueError, match=r"rows \[0\] have more active than total parameters"):
        fit_expert_law(np.r_[N[0] / 2, N[1:]], N, D, L)
    with pytest.raises(ValueError, match=r"an expansion is 1 or more, but is 0\.5"):
        law.predict(1e9, 0.5, 1e10)
    with pytest.raises(ValueError, match="was fitted without granularity"):
        law.predict(1e9, 8, 1e10, granularity=8)
    with pytest.raises(ValueError, match="needs 11 runs"):
        fit_expert_law(*(column[:10] for column in (8 * N, N, D, L)))
