"""Laws of the data mix."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from carbs.analysis import MixingLaw, fit_mixing_law


def loss_of(W: np.ndarray) -> np.ndarray:
    """Best at (0.6, 0.3, 0.1, 0) or near: two skills, each from two domains."""
    first = W[:, 0] + 0.2 * W[:, 2] + 0.02
    second = W[:, 1] + 0.5 * W[:, 2] + 0.02
    return np.asarray(2.0 + 0.4 * first**-0.3 + 0.2 * second**-0.3 + 0.3 * W[:, 3])


def mixes(n: int, seed: int = 0, noise: float = 0.003) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    W = rng.dirichlet(np.full(4, 0.6), n)
    return W, loss_of(W) * np.exp(noise * rng.standard_normal(n))


@pytest.fixture(scope="module")
def law() -> MixingLaw:
    return fit_mixing_law(*mixes(80))


def test_unseen_mixes_are_ranked_and_covered(law: MixingLaw) -> None:
    W, L = mixes(200, seed=1)
    assert law.rank_correlation(W, L) > 0.98
    assert law.rank_correlation(W, 5 - L) < -0.98
    np.testing.assert_allclose(law.predict(W), L, rtol=0.1)
    low, high = law.interval(W)
    assert np.mean((low <= L) & (high >= L)) >= 0.8


def test_the_best_mix_is_nearly_the_best_there_is(law: MixingLaw) -> None:
    best = law.best_mix(n_samples=50)
    everywhere = loss_of(np.random.default_rng(2).dirichlet(np.ones(4), 20_000)).min()
    assert best.weights.sum() == pytest.approx(1)
    assert loss_of(best.weights[None])[0] < 1.01 * everywhere
    assert (best.low <= best.weights).all() and (best.weights <= best.high).all()
    assert best.loss_interval[0] < best.loss < best.loss_interval[1]
    assert list(best.table(["web", "code", "books", "noise"])["domain"])[3] == "noise"


def test_rows_that_are_no_mixtures_are_named() -> None:
    W, L = mixes(12)
    W[4] *= 2
    W[7, 0] = -0.1
    with pytest.raises(ValueError, match=r"rows \[4, 7\]"):
        fit_mixing_law(W, L)
    W, L = mixes(12)
    L[3] = np.nan
    with pytest.raises(ValueError, match=r"rows \[3\]"):
        fit_mixing_law(W, L)
    with pytest.raises(ValueError, match="needs 8 mixtures"):
        fit_mixing_law(*mixes(5))


def test_the_columns_of_a_frame_are_read_by_name() -> None:
    W, L = mixes(12)
    names = ["web", "code", "books", "noise"]
    frame = pd.DataFrame(W, columns=names)
    law = fit_mixing_law(frame, L)
    reversed_ = frame[names[::-1]]
    np.testing.assert_array_equal(law.predict(reversed_), law.predict(frame))
    np.testing.assert_array_equal(law.interval(reversed_), law.interval(frame))
    np.testing.assert_array_equal(law.predict(W), law.predict(frame))
    assert law.rank_correlation(reversed_, L) == law.rank_correlation(W, L)
    assert list(law.best_mix(n_samples=2).table()["domain"]) == names
    with pytest.raises(ValueError, match="lack noise and have nois, unknown to the law"):
        law.predict(frame.rename(columns={"noise": "nois"}))
    with pytest.raises(ValueError, match="have loss, unknown"):
        law.predict(frame.assign(loss=L))
    with pytest.raises(ValueError, match="but run are not"):
        fit_mixing_law(frame.assign(run="a"), L)


def test_a_level_in_percent_is_refused(law: MixingLaw) -> None:
    for asked in (lambda: law.interval(law.weights, level=90), lambda: law.best_mix(level=90)):
        with pytest.raises(ValueError, match=r"0\.9 for 90%, but is 90"):
            asked()


def test_weights_in_percent_are_told_to_be() -> None:
    W, L = mixes(12)
    with pytest.raises(ValueError, match="sum to 100: divide them by 100"):
        fit_mixing_law(100 * W, L)
    with pytest.raises(ValueError, match=r"\(30 of 30\).*first of them sums to 3"):
        fit_mixing_law(3 * mixes(30)[0], mixes(30)[1])


def test_published_mixtures_are_ranked(published: Callable[[str], pd.DataFrame]) -> None:
    table = published("regmix_1m.csv")
    W = table[[name for name in table if name.startswith("w_")]].to_numpy()
    L = table["loss_pile_cc"].to_numpy()
    held = np.arange(len(W)) % 5 == 0
    law = fit_mixing_law(W[~held], L[~held])
    assert spearmanr(law.predict(W[held]), L[held]).statistic > 0.985
