"""Tables of runs with columns of any names."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from carbs.analysis import ComputeLaw, LossLaw
from carbs.analysis.laws.runs import fit_runs

rng = np.random.default_rng(0)
N = np.geomspace(1e7, 1e9, 6).repeat(6)
D = np.tile(np.geomspace(1e9, 3e10, 6), 6)
LOSS = (1.7 + 400 * N**-0.34 + 410 * D**-0.28) * np.exp(0.001 * rng.standard_normal(36))


def test_columns_are_guessed_and_said() -> None:
    frame = pd.DataFrame({"Model Size": N, "train_tokens": D, "val_loss": LOSS, "note": "x"})
    found = fit_runs(frame)
    assert isinstance(found.law, LossLaw)
    assert found.law.alpha == pytest.approx(0.34, abs=0.03)
    assert "n_params from 'Model Size' (guessed)" in found.said()


def test_given_columns_are_taken_and_rows_without_values_left_out() -> None:
    frame = pd.DataFrame({"a": N, "b": D, "loss": LOSS + 1, "mine": LOSS})
    frame.loc[3, "mine"] = np.nan
    found = fit_runs(frame, {"n_params": "a", "n_tokens": "b", "loss": "mine"})
    assert isinstance(found.law, LossLaw)
    assert 1.6 < found.law.E < 1.8
    assert found.guessed == () and found.n_left_out == 1
    assert "1 rows left out" in found.said()


def test_compute_alone_is_enough() -> None:
    flops = np.geomspace(1e18, 1e21, 12)
    frame = pd.DataFrame({"FLOPs": flops, "loss": 1.7 + 2 * (flops / 1e18) ** -0.15})
    found = fit_runs(frame)
    assert isinstance(found.law, ComputeLaw)
    assert found.law.g == pytest.approx(0.15, abs=0.02)


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="no column 'mine'"):
        fit_runs(pd.DataFrame({"loss": LOSS}), {"loss": "mine"})
    with pytest.raises(ValueError, match="parameters and tokens or of compute"):
        fit_runs(pd.DataFrame({"loss": LOSS, "n_params": N}))
