"""The fitter against scipy's, on a law with a known answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares
from threadpoolctl import threadpool_info, threadpool_limits

from carbs.analysis import fit_accuracy_law, fit_mixing_law, fit_optimum_law
from carbs.analysis.laws.fitting import descend

X = np.linspace(0.0, 3.0, 30)


def decay(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    falling = np.exp(-theta[:, 1:2] * X)
    value = theta[:, :1] * falling + theta[:, 2:]
    return value, np.stack([falling, -theta[:, :1] * X * falling, np.ones_like(value)], axis=-1)


def measured(seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 2 * np.exp(-1.3 * X) + 0.5 + 0.02 * rng.standard_t(2, len(X))


STARTS = np.array([[1.0, 1.0, 0.0], [3.0, 0.3, 1.0]])
FREE = {"lower": np.full(3, -10.0), "upper": np.full(3, 10.0)}


@pytest.mark.parametrize("delta", [1e-3, 1e-2, 1.0])
def test_it_finds_the_minimum_that_scipy_finds(delta: float) -> None:
    y = measured()
    fits = descend(decay, y, STARTS, delta=delta, tolerance=1e-14, **FREE)
    peer = least_squares(
        lambda theta: decay(theta[None])[0][0] - y,
        fits.best(),
        loss="huber",
        f_scale=delta,
        xtol=1e-14,
        ftol=1e-14,
        gtol=1e-14,
    )
    assert fits.objective.min() == pytest.approx(peer.cost, rel=1e-5)


def test_each_start_may_have_its_own_targets_and_weights() -> None:
    y = np.stack([measured(1), measured(2)])
    weights = np.random.default_rng(0).uniform(0.5, 2.0, y.shape)
    both = descend(decay, y, STARTS, delta=0.05, weights=weights, **FREE)
    for i in range(2):
        alone = descend(decay, y[i], STARTS[i : i + 1], delta=0.05, weights=weights[i], **FREE)
        np.testing.assert_allclose(both.theta[i], alone.theta[0], rtol=1e-4)


def test_bounds_hold_and_a_prior_draws() -> None:
    y = measured()
    upper = np.array([10.0, 1.0, 10.0])
    bound = descend(decay, y, STARTS, delta=1.0, lower=FREE["lower"], upper=upper).best()
    assert bound[1] == 1.0
    drawn = descend(
        decay, y, STARTS, delta=1.0, prior=(np.zeros(3), np.array([np.inf, np.inf, 1e-3])), **FREE
    ).best()
    assert abs(drawn[2]) < 0.01


def mixing(rng: np.random.Generator) -> None:
    W = rng.dirichlet(np.ones(3), 12)
    fit_mixing_law(W, 2 + W @ [0.1, 0.3, 0.5])


def accuracy(rng: np.random.Generator) -> None:
    L = np.linspace(1.4, 0.6, 12)
    fit_accuracy_law(L, 0.25 + 0.7 / (1 + np.exp((L - 1) / 0.1)))


def optimum(rng: np.random.Generator) -> None:
    rows = [(D, lr) for D in (1e9, 3e9, 1e10, 3e10) for lr in 2.0 ** np.arange(-12.0, -4.0)]
    runs = pd.DataFrame(rows, columns=["n_tokens", "lr"])
    off = np.log(runs["lr"] / 0.01 * (runs["n_tokens"] / 1e9) ** 0.3)
    runs["loss"] = 2 + 5 * runs["n_tokens"] ** -0.1 + 0.02 * off**2 + 1e-3 * rng.random(len(runs))
    fit_optimum_law(runs, ["lr"], ["n_tokens"], n_resamples=5)


@pytest.mark.parametrize("fit", [mixing, accuracy, optimum])
def test_laws_are_fitted_on_one_thread(
    fit: Callable[[np.random.Generator], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, default_rng = [], np.random.default_rng

    def spied(seed: int) -> np.random.Generator:
        pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
        seen.append(max(pool["num_threads"] for pool in pools))
        return default_rng(seed)

    monkeypatch.setattr(np.random, "default_rng", spied)
    with threadpool_limits(2, user_api="blas"):
        fit(default_rng(0))
    assert set(seen) == {1}
