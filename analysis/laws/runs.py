"""Runs that no sweep of ours made: a table with columns of whatever names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from carbs.analysis.laws.power import ComputeLaw, LossLaw
from carbs.analysis.laws.power_fits import fit_compute_law, fit_loss_law

# For each quantity, the names that it goes by, likeliest first; compared in lower case, without
# anything but letters and digits.
_NAMES = {
    "loss": (
        *("loss", "valloss", "validationloss", "evalloss", "testloss", "finalloss", "output"),
        *("trainloss", "l"),
    ),
    "n_params": (
        *("nparams", "nonembeddingparams", "numparams", "params", "parameters", "modelsize"),
        *("numparameters", "nonembeddingparameters", "n"),
    ),
    "n_tokens": (
        *("ntokens", "traintokens", "trainingtokens", "numtokens", "tokens", "d", "datasize"),
        *("trainingtokenscount",),
    ),
    "compute": (
        *("computeflops", "flops", "trainingflops", "trainflops", "flop", "trainingflop"),
        *("compute", "c", "cost"),
    ),
    "group": ("group", "run", "runid", "runname"),
}


@dataclass(frozen=True)
class RunsFit:
    """A law fitted to a table.

    Attributes:
        law: of the loss in parameters and tokens, or in compute.
        columns: the column that each quantity was read from.
        guessed: those of them that were not given.
        n_left_out: rows without all values.
    """

    law: LossLaw | ComputeLaw
    columns: Mapping[str, str]
    guessed: tuple[str, ...]
    n_left_out: int

    def said(self) -> str:
        """What was read from where, in a line."""
        parts = [
            f"{quantity} from {column!r}" + (" (guessed)" if quantity in self.guessed else "")
            for quantity, column in self.columns.items()
        ]
        left_out = f"; {self.n_left_out} rows left out, as they lack values" * bool(self.n_left_out)
        return "read " + ", ".join(parts) + left_out


def guess_columns(frame: pd.DataFrame) -> dict[str, str]:
    """The columns that look like a loss, parameters, tokens, compute and a run's name."""
    plain = {re.sub(r"[^a-z0-9]", "", str(name).lower()): str(name) for name in frame.columns}
    found = {}
    for quantity, names in _NAMES.items():
        for name in names:
            if name in plain:
                found[quantity] = plain[name]
                break
    return found


def fit_runs(frame: pd.DataFrame, columns: Mapping[str, str] | None = None) -> RunsFit:
    """The law that a table of runs allows: L(N, D) with parameters and tokens, else L(C).

    Args:
        frame: one row a run.
        columns: of ``loss``, ``n_params``, ``n_tokens``, ``compute``, ``group``; the others are
            guessed from their names.

    Raises:
        ValueError: a column that is not there, or too few of them to fit a law.
    """
    given = dict(columns or {})
    for quantity, column in given.items():
        if quantity not in _NAMES:
            raise ValueError(f"{quantity!r} is none of {list(_NAMES)}")
        if column not in frame:
            raise ValueError(f"there is no column {column!r}: the table has {list(frame.columns)}")
    known = {**guess_columns(frame), **given}
    if "compute" in given and not {"n_params", "n_tokens"} & set(given):
        known = {q: c for q, c in known.items() if q not in ("n_params", "n_tokens")}
    if {"loss", "n_params", "n_tokens"} <= set(known):
        wanted = ["loss", "n_params", "n_tokens"]
    elif {"loss", "compute"} <= set(known):
        wanted = ["loss", "compute"]
    else:
        raise ValueError(
            "a law needs the columns of the loss, and of parameters and tokens or of compute, but "
            f"only {known or 'none'} could be told among {list(frame.columns)}: name them"
        )
    if "group" in known:
        wanted.append("group")
    used = {quantity: known[quantity] for quantity in wanted}
    rows = frame[list(used.values())].dropna()
    values = {quantity: rows[column].to_numpy() for quantity, column in used.items()}
    groups = values.get("group")
    law: LossLaw | ComputeLaw
    if "compute" in used:
        law = fit_compute_law(values["compute"], values["loss"], groups=groups)
    else:
        law = fit_loss_law(values["n_params"], values["n_tokens"], values["loss"], groups=groups)
    guessed = tuple(quantity for quantity in used if quantity not in given)
    return RunsFit(law, used, guessed, len(frame) - len(rows))
