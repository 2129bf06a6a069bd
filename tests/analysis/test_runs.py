"""Tables of runs with columns of any names."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carbs.analysis import ComputeLaw, LossLaw, datasets, read_runs
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


def test_tokens_that_repeat_are_told_by_a_column_of_the_unique_ones() -> None:
    runs = datasets.load("muennighoff")
    runs = runs[(runs["n_params"] > 1e8) & (runs["n_tokens"] >= 5 * runs["n_params"])]
    runs = runs[runs["n_tokens"] <= 60 * runs["unique_tokens"]]
    found = fit_runs(runs)
    assert found.columns["unique_tokens"] == "unique_tokens" and "R* =" in found.law.fitted_to
    renamed = runs.rename(columns={"unique_tokens": "of these new"})
    assert "R* =" not in fit_runs(renamed).law.fitted_to
    again = fit_runs(renamed, {"unique_tokens": "of these new"})
    assert again.law.fitted_to == found.law.fitted_to
    with pytest.raises(ValueError, match="'unique_tokens' is 30 at most, which is no number of"):
        fit_runs(runs.assign(unique_tokens=30.0))


def test_a_column_that_names_one_run_for_all_rows_is_no_group() -> None:
    frame = pd.DataFrame({"N": N, "D": D, "loss": LOSS})
    found = fit_runs(frame.assign(run="my-sweep"))
    assert "'run' names one run for all rows, and is not used" in found.said()
    assert "group" not in found.columns
    pd.testing.assert_frame_equal(found.law.summary(), fit_runs(frame).law.summary())
    with pytest.raises(ValueError, match="'my-sweep' is the run of all 36 rows"):
        fit_runs(frame.assign(run="my-sweep"), {"group": "run"})


def test_rows_are_named_as_in_the_table_where_some_lack_values() -> None:
    frame = pd.DataFrame({"N": N, "D": D, "loss": LOSS, "lr": 1e-3 * (1 + np.arange(36) % 7)})
    frame.loc[[0, 1, 2], "loss"] = np.nan
    with pytest.raises(ValueError, match="row 10 of 'loss' is 0"):
        fit_runs(frame.assign(loss=frame["loss"].where(frame.index != 10, 0.0)))
    with pytest.raises(ValueError, match="row 10 of 'loss' is 0"):
        fit_runs(frame.assign(loss=frame["loss"].where(frame.index != 10, 0.0))[5:])
    frame.loc[30, "loss"] *= 2
    law = fit_runs(frame, tuned=False).law
    assert isinstance(law, LossLaw) and "left out (rows 30)" in law.fitted_to


def test_compute_alone_is_enough() -> None:
    flops = np.geomspace(1e18, 1e21, 12)
    frame = pd.DataFrame({"FLOPs": flops, "loss": 1.7 + 2 * (flops / 1e18) ** -0.15})
    found = fit_runs(frame)
    assert isinstance(found.law, ComputeLaw)
    assert found.law.g == pytest.approx(0.15, abs=0.02)


def test_numbers_are_read_as_people_write_them() -> None:
    frame = pd.DataFrame(
        {
            "params": [f"{n / 1e6:.3f}M" for n in N],
            "tokens": [
                f"{d / 1e9:.4f} B tokens" if i % 2 else f"{d:,.0f}" for i, d in enumerate(D)
            ],
            "bpb": LOSS,
        }
    )
    frame.loc[4, "bpb"] = np.nan
    frame["bpb"] = frame["bpb"].map(lambda loss: f"{loss:.6e}").replace("nan", "diverged")
    found = fit_runs(frame)
    assert isinstance(found.law, LossLaw)
    np.testing.assert_allclose(found.law.n_params, np.delete(N, 4), rtol=1e-4)
    np.testing.assert_allclose(found.law.n_tokens, np.delete(D, 4), rtol=1e-3)
    said = found.said()
    assert "'10.000M' of 'params' read as 1e+07" in said and "bits per byte" in said
    assert "1 rows left out, as they lack values (rows 4)" in said


@pytest.mark.filterwarnings("ignore::carbs.analysis.UndeterminedLawWarning")
def test_each_way_to_write_a_number() -> None:
    written = {
        "447M": 447e6,
        "1.2e9": 1.2e9,
        "300B": 3e11,
        "300 b": 3e11,
        "1,200,000": 1.2e6,
        "1_000": 1e3,
        "1.5 billion": 1.5e9,
        "6e20 FLOPs": 6e20,
        "2T tokens": 2e12,
        ".5": 0.5,
    }
    frame = pd.DataFrame({"loss": LOSS[:10], "flops": list(written)})
    law = fit_runs(frame).law
    assert isinstance(law, ComputeLaw)
    np.testing.assert_allclose(law.compute, list(written.values()))


def test_what_is_no_number_is_named() -> None:
    frame = pd.DataFrame({"loss": LOSS, "N": N.astype(str), "D": D})
    frame.loc[7, "N"] = "1,5M"
    with pytest.raises(ValueError, match=r"row 7 of 'N' is no number: '1,5M' \(write 447M"):
        fit_runs(frame)


def test_numbers_that_cannot_be_meant_are_named() -> None:
    frame = pd.DataFrame({"loss": LOSS, "N": N, "D": D})
    losses = frame["loss"].map(str)
    for written, said in {
        "-3": "row 7 of 'loss' is -3, but it must be positive",
        "4,575": "row 7 of 'loss' may be 4.575 or 4575: '4,575'",
        "-": None,
    }.items():
        wrong = frame.assign(loss=losses.where(frame.index != 7, written))
        if said is None:
            assert fit_runs(wrong).n_left_out == 1
        else:
            with pytest.raises(ValueError, match=said):
                fit_runs(wrong)
    with pytest.raises(ValueError, match=r"row 2 of 'N' is -4e\+06, but it must be positive"):
        fit_runs(frame.assign(N=frame["N"].map(str).where(frame.index != 2, "-4M")))
    with pytest.raises(ValueError, match=r"row 0 of 'lr' may be 0\.001 or 0001"):
        fit_runs(frame.assign(lr="0,001"), hyperparameters=["lr"])
    ppl = np.exp(LOSS).tolist()
    with pytest.raises(ValueError, match="row 3 of 'ppl' is 1, but perplexities are above 1"):
        fit_runs(pd.DataFrame({"N": N, "D": D, "ppl": [*ppl[:3], 1.0, *ppl[4:]]}))


def test_a_cell_with_a_unit_of_its_own_is_not_in_the_columns() -> None:
    written = [f"{n / 1e6:.6f}M" if i % 2 else f"{n / 1e6:.6f}" for i, n in enumerate(N)]
    law = fit_runs(pd.DataFrame({"params_m": written, "tokens_b": D / 1e9, "loss": LOSS})).law
    assert isinstance(law, LossLaw)
    np.testing.assert_allclose(law.n_params, N, rtol=1e-5)
    np.testing.assert_allclose(law.n_tokens, D)


def test_two_columns_that_would_do_are_asked_for() -> None:
    frame = pd.DataFrame({"N": N, "D": D, "val_loss": LOSS, "train_loss": LOSS + 0.1})
    with pytest.raises(ValueError, match=r"'val_loss' and 'train_loss' may each be the loss.*--l"):
        fit_runs(frame)
    assert fit_runs(frame, {"loss": "val_loss"}).columns["loss"] == "val_loss"
    same = frame.assign(train_loss=LOSS)
    assert fit_runs(same).columns["loss"] == "val_loss"


def test_the_unit_of_a_column_is_read_and_a_missing_one_asked_for() -> None:
    frame = pd.DataFrame({"params_b": N / 1e9, "Tokens (M)": D / 1e6, "loss": LOSS})
    found = fit_runs(frame)
    assert isinstance(found.law, LossLaw)
    np.testing.assert_allclose(found.law.n_params, N)
    np.testing.assert_allclose(found.law.n_tokens, D)
    assert "'params_b' is in 1e9" in found.said()
    with pytest.raises(ValueError, match=r"'params' is 1 at most.*params_b"):
        fit_runs(pd.DataFrame({"params": N / 1e9, "tokens": D, "loss": LOSS}))


def test_any_two_of_parameters_tokens_and_flops_are_enough() -> None:
    found = fit_runs(pd.DataFrame({"C": 6 * N * D, "D": D, "ppl": np.exp(LOSS)}))
    assert isinstance(found.law, LossLaw)
    np.testing.assert_allclose(found.law.n_params, N)
    np.testing.assert_allclose(found.law.loss, LOSS)
    assert "n_params computed from C = 6 N D" in found.said()
    assert "logarithm of 'ppl'" in found.said()
    days = pd.DataFrame({"compute": 6 * N * D / 8.64e19, "params": N, "loss": LOSS})
    with pytest.raises(ValueError, match=r"n_tokens computed from 'compute'.*a PF-day has 8.64e19"):
        fit_runs(days)


@pytest.mark.parametrize("kind", ["csv", "tsv", "csv.gz", "jsonl", "parquet"])
def test_files_are_read_by_their_name(kind: str, tmp_path: Path) -> None:
    frame = pd.DataFrame({"n_params": N, "n_tokens": D, "loss": LOSS})
    file = tmp_path / f"runs.{kind}"
    if kind == "parquet":
        frame.to_parquet(file)
    elif kind == "jsonl":
        frame.to_json(file, orient="records", lines=True, double_precision=15)
    else:
        frame.to_csv(file, index=False, sep="\t" if kind == "tsv" else ",")
    pd.testing.assert_frame_equal(read_runs(file), frame, check_dtype=False)
    with pytest.raises(ValueError, match=r"runs\.xlsx is none of \.csv"):
        read_runs(tmp_path / "runs.xlsx")


def test_thousands_of_rows_are_fitted_in_seconds() -> None:
    many = np.random.default_rng(0)
    n = 2000
    n_params, n_tokens = 10 ** many.uniform(7, 9.5, n), 10 ** many.uniform(9, 11.5, n)
    loss = 1.7 + 400 * n_params**-0.34 + 1500 * n_tokens**-0.36
    loss *= np.exp(0.01 * many.standard_normal(n))
    start = time.process_time()
    fit_runs(pd.DataFrame({"N": n_params, "D": n_tokens, "loss": loss}))
    assert time.process_time() - start < 5  # 1.2 where nothing else runs


def test_what_is_missing_is_named() -> None:
    with pytest.raises(ValueError, match="no column 'mine'"):
        fit_runs(pd.DataFrame({"loss": LOSS}), {"loss": "mine"})
    with pytest.raises(ValueError, match="parameters and tokens or of compute"):
        fit_runs(pd.DataFrame({"loss": LOSS, "n_params": N}))
