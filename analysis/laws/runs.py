"""Runs that no sweep of ours made: a file or table with columns of whatever names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from carbs.analysis.laws.power import FLOPS_PER_TOKEN, ComputeLaw, LossLaw
from carbs.analysis.laws.power_fits import fit_compute_law, fit_loss_law
from carbs.analysis.laws.rows import names_of_rows
from carbs.spaces import FloatArray

# For each quantity, the names that it goes by; compared in lower case, without anything but letters
# and digits. Letters alone count only where no longer name is found.
_NAMES = {
    "loss": (
        *("loss", "valloss", "validationloss", "evalloss", "testloss", "finalloss", "output"),
        *("trainloss", "bpb", "bitsperbyte", "perplexity", "ppl", "l"),
    ),
    "n_params": (
        *("nparams", "nonembeddingparams", "numparams", "params", "parameters", "modelsize"),
        *("numparameters", "nonembeddingparameters", "nparamsnoembed", "nparameters", "n"),
    ),
    "n_tokens": (
        *("ntokens", "traintokens", "trainingtokens", "numtokens", "tokens", "datasize", "d"),
        "trainingtokenscount",
    ),
    "unique_tokens": (
        *("uniquetokens", "nuniquetokens", "numuniquetokens", "tokensunique", "tokensperepoch"),
    ),
    "compute": (
        *("computeflops", "flops", "trainingflops", "trainflops", "flop", "trainingflop"),
        *("compute", "cost", "c"),
    ),
    "group": ("group", "run", "runid", "runname"),
}
_OPTIONS = {
    "loss": "--loss",
    "n_params": "--params",
    "n_tokens": "--tokens",
    "unique_tokens": "--unique",
    "compute": "--compute",
    "group": "--group",
}
# What a loss is measured in, where its column's name tells.
_LOSS_UNITS = {"bpb": "bits per byte", "bitsperbyte": "bits per byte"}
_PERPLEXITIES = ("perplexity", "ppl")

_POWERS = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21}
_WORDS = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_NUMBER = re.compile(
    r"\s*(?P<digits>-?(?:\d{1,3}(?:[,_ ]\d{3})+(?:\.\d*)?|\d[\d_]*\.?\d*|\.\d+))"
    r"(?P<exponent>e[+-]?\d+)?"
    r"\s*(?P<power>thousand|million|billion|trillion|[kmbgtpez])?"
    r"\s*(?:flops?|params?|parameters|tokens?|toks?)?\s*",
    re.IGNORECASE,
)
# Is a loss of 4,575 four and a half, or four thousand? And no thousands begin with a nought.
_THOUSANDS_OR_DECIMALS = {
    "loss": re.compile(r"-?\d{1,3},\d{3}"),
    "hyperparameter": re.compile(r"-?0\d*,\d{3}"),
}
# "params_b", "tokens (B)", "tokens in billions": the unit of a whole column.
_UNIT_OF_COLUMN = re.compile(
    r"(?P<name>.+?)(?:\s+in\s+|[\s_(\[/]+)(?P<power>k|m|b|t|thousand|million|billion|trillion)s?[)\]]?",
    re.IGNORECASE,
)
_NO_VALUE = ("", "-", "n/a", "na", "nan", "none", "null", "inf", "-inf", "infinity", "diverged")
# Below that, sizes must be in some other unit than one.
_LEAST_SIZE = 1e3
_N_NAMED = 10  # rows, in a sentence


@dataclass(frozen=True)
class RunsFit:
    """A law fitted to a table.

    Attributes:
        law: of the loss in parameters and tokens, or in compute.
        columns: the column that each quantity was read from.
        guessed: those of them that were not given.
        n_left_out: rows without all values.
        notes: what else to know of the reading: units, what was computed, which rows lack values.
    """

    law: LossLaw | ComputeLaw
    columns: Mapping[str, str]
    guessed: tuple[str, ...]
    n_left_out: int
    notes: tuple[str, ...] = ()

    def said(self) -> str:
        """What was read from where, and what was left out, in a line."""
        parts = [
            f"{quantity} from {column!r}" + (" (guessed)" if quantity in self.guessed else "")
            for quantity, column in self.columns.items()
        ]
        return "; ".join(["read " + ", ".join(parts), *self.notes])


def read_runs(file: Path | str) -> pd.DataFrame:
    """A table of runs from CSV, TSV, Parquet or JSON lines, by the file's name.

    Raises:
        ValueError: another kind of file, or one that cannot be read as what its name says.
        OSError: no such file.
    """
    file = Path(file)
    readers: dict[str, Callable[[Path], pd.DataFrame]] = {
        "csv": pd.read_csv,
        "tsv": lambda file: pd.read_csv(file, sep="\t"),
        "parquet": pd.read_parquet,
        "jsonl": lambda file: pd.read_json(file, lines=True),
        "ndjson": lambda file: pd.read_json(file, lines=True),
    }
    kinds = [suffix.lstrip(".").lower() for suffix in file.suffixes]
    kind = next((kind for kind in reversed(kinds) if kind in readers), None)
    if kind is None:
        raise ValueError(
            f"{file.name} is none of {', '.join('.' + kind for kind in readers)}: its name says "
            "how to read it"
        )
    try:
        return readers[kind](file)
    except ImportError:
        raise ValueError(
            "Parquet is read by pyarrow: pip install 'carbs-search[parquet]'"
        ) from None


def guess_columns(frame: pd.DataFrame) -> dict[str, str]:
    """The columns that look like a loss, parameters, tokens, compute, or a run's name.

    Raises:
        ValueError: two columns would do for one of them, and their values differ; names both.
    """
    found = {}
    for quantity, names in _NAMES.items():
        fitting = [str(column) for column in frame.columns if _plain(column) in names]
        # A letter may be anything, and a cost in dollars is no rival of FLOPs.
        likely = [c for c in fitting if len(_plain(c)) > 1 and _plain(c) not in ("output", "cost")]
        fitting = likely or fitting
        if quantity == "group":
            fitting = fitting[:1]
        if len(fitting) > 1 and not all(
            frame[fitting[0]].equals(frame[other]) for other in fitting[1:]
        ):
            either = " and ".join(map(repr, fitting))
            raise ValueError(
                f"{either} may each be the {quantity}: choose one with {_OPTIONS[quantity]}, or "
                f"columns={{{quantity!r}: ...}}"
            )
        if fitting:
            found[quantity] = fitting[0]
    return found


def fit_runs(
    frame: pd.DataFrame,
    columns: Mapping[str, str] | None = None,
    *,
    tuned: bool = True,
    hyperparameters: Sequence[str] = (),
) -> RunsFit:
    """The law that a table of runs allows: L(N, D) with parameters and tokens, else L(C).

    Of parameters, tokens and FLOPs any two are enough for L(N, D), as C = 6 N D. Numbers may be
    written ``447M``, ``1.2e9``, ``300B`` or ``1,200,000``, and a column named ``params_b`` or
    ``tokens (M)`` is in billions or millions. A column of perplexities is read as their logarithm.

    Args:
        frame: one row a run.
        columns: of ``loss``, ``n_params``, ``n_tokens``, ``unique_tokens`` (where tokens repeat),
            ``compute``, ``group``; the others are guessed from their names.
        tuned, hyperparameters: as of :func:`fit_loss_law`, with the columns of hyperparameters by
            their names.

    Raises:
        ValueError: a column that is not there, two that would do, too few of them to fit a law, or
            values that are no numbers (named).
    """
    given = dict(columns or {})
    for quantity, column in given.items():
        if quantity not in _NAMES:
            raise ValueError(f"{quantity!r} is none of {list(_NAMES)}")
        if column not in frame:
            raise ValueError(f"there is no column {column!r}: the table has {list(frame.columns)}")
    # What is given is not guessed, nor is its column anything else.
    hidden = set(given.values())
    for quantity in given:
        hidden |= {c for c in frame.columns if _plain(c) in _NAMES[quantity]}
    known = {**guess_columns(frame.drop(columns=[c for c in hidden if c in frame])), **given}
    if "compute" in given and not {"n_params", "n_tokens"} & set(given):
        known = {q: c for q, c in known.items() if q not in ("n_params", "n_tokens")}
    sizes = [quantity for quantity in ("n_params", "n_tokens") if quantity in known]
    if "loss" in known and len(sizes) == 2:
        wanted = ["loss", *sizes]
    elif "loss" in known and "compute" in known:
        wanted = ["loss", *sizes, "compute"]
    else:
        raise ValueError(
            "a law needs the columns of the loss, and of parameters and tokens or of compute, but "
            f"only {known or 'none'} could be told among {list(frame.columns)}: name them with "
            f"{', '.join(_OPTIONS.values())}, or columns="
        )
    if "unique_tokens" in known and sizes:
        wanted.append("unique_tokens")
    used = {quantity: known[quantity] for quantity in wanted}
    notes = []
    values = {}
    rows = names_of_rows(len(frame), frame[used["loss"]])
    for quantity, column in used.items():
        values[quantity], note = _read(frame[column], str(column), quantity)
        notes += [note] * bool(note)
    varied = {}
    for column in hyperparameters:
        if column not in frame:
            raise ValueError(f"there is no column {column!r}: the table has {list(frame.columns)}")
        varied[column], note = _read(frame[column], column, "hyperparameter")
        notes += [note] * bool(note)
    complete = np.all([np.isfinite(c) for c in (*values.values(), *varied.values())], axis=0)
    guessed_group = "group" in known and "group" not in given
    if guessed_group and frame.loc[complete, known["group"]].nunique() < 2:
        notes.append(f"{known.pop('group')!r} names one run for all rows, and is not used")
    if "group" in known:
        used["group"] = known["group"]
        complete &= frame[used["group"]].notna().to_numpy()
    left_out = np.flatnonzero(~complete)
    if len(left_out):
        named = ", ".join(map(str, rows[left_out[:_N_NAMED]]))
        named += ", ..." * (len(left_out) > _N_NAMED)
        notes.append(f"{len(left_out)} rows left out, as they lack values (rows {named})")
    kept = pd.Index(rows[complete])
    values = {quantity: column[complete] for quantity, column in values.items()}
    if "compute" in used and sizes:
        absent = "n_tokens" if sizes == ["n_params"] else "n_params"
        values[absent] = values.pop("compute") / (FLOPS_PER_TOKEN * values[sizes[0]])
        _check_size(
            values[absent],
            absent,
            f"{absent} computed from {used['compute']!r} as C = 6 N D",
            f"{used['compute']!r} must be in FLOPs, of which a PF-day has 8.64e19",
        )
        notes.append(f"{absent} computed from C = 6 N D")
    unused = [str(c) for q, c in known.items() if q not in used]
    if unused:
        notes.append(f"{', '.join(map(repr, unused))} not used: parameters and tokens tell more")
    groups = frame[used["group"]].to_numpy()[complete] if "group" in used else None
    law: LossLaw | ComputeLaw
    if "compute" in values:
        if varied or not tuned:
            raise ValueError(
                "the lower edge of untuned runs is sought over parameters and tokens, but there is "
                "only their compute: name their columns with --params and --tokens"
            )
        loss = pd.Series(values["loss"], kept)
        law = fit_compute_law(values["compute"], loss, groups=groups)
    else:
        law = fit_loss_law(
            values["n_params"],
            values["n_tokens"],
            pd.Series(values["loss"], kept),
            groups=groups,
            unique_tokens=values.get("unique_tokens"),
            tuned=tuned,
            hyperparameters=pd.DataFrame(varied, rows)[complete] if varied else None,
        )
    guessed = tuple(quantity for quantity in used if quantity not in given)
    return RunsFit(law, used, guessed, len(left_out), tuple(notes))


def _plain(column: object) -> str:
    """A column's name in lower case, without its unit, of letters and digits."""
    text = str(column)
    unit = _UNIT_OF_COLUMN.fullmatch(text)
    return re.sub(r"[^a-z0-9]", "", (unit["name"] if unit else text).lower())


def _read(column: pd.Series, name: str, quantity: str) -> tuple[FloatArray, str]:
    """Numbers, ``(n,)``, not finite where there is none, and what to say of how they were read."""
    plain = _plain(name)
    unit = _UNIT_OF_COLUMN.fullmatch(name) if quantity != "loss" else None
    rows = names_of_rows(len(column), column)
    factor = 1.0
    if unit is not None:
        power = unit["power"].lower()
        factor = _WORDS.get(power) or _POWERS[power]
    if pd.api.types.is_numeric_dtype(column):
        values, as_written = factor * column.to_numpy(dtype=float, na_value=np.nan), False
    else:
        read = [number_as_written(value, factor) for value in column]
        wrong = [i for i, number in enumerate(read) if number is None]
        if wrong:
            raise ValueError(
                f"row {rows[wrong[0]]} of {name!r} is no number: {column.iloc[wrong[0]]!r} (write "
                f"447M, 1.2e9 or 300B)" + f"; {len(wrong)} rows are none" * (len(wrong) > 1)
            )
        values, as_written = np.array(read, dtype=float), True
        unclear = _THOUSANDS_OR_DECIMALS.get(quantity)
        for row, value in zip(rows, column, strict=True):
            if unclear is not None and isinstance(value, str) and unclear.fullmatch(value.strip()):
                point, none = value.strip().replace(",", "."), value.strip().replace(",", "")
                raise ValueError(
                    f"row {row} of {name!r} may be {point} or {none}: {value!r}. Write it without "
                    "the comma"
                )
    note = ""
    if unit is not None:
        note = f"{name!r} is in {factor:.0e}".replace("e+0", "e")
    known = values[np.isfinite(values)]
    least = 1.0 if plain in _PERPLEXITIES and quantity == "loss" else 0.0
    wrong = [i for i, value in enumerate(values) if np.isfinite(value) and value <= least]
    if wrong:
        what = "perplexities are above 1" if least else "it must be positive"
        raise ValueError(
            f"row {rows[wrong[0]]} of {name!r} is {values[wrong[0]]:.6g}, but {what}"
            + f"; {len(wrong)} rows are not" * (len(wrong) > 1)
        )
    if quantity in ("n_params", "n_tokens", "unique_tokens"):
        better = f"if it is in billions, name the column {name}_b, or write 447M"
        _check_size(known, quantity, repr(name), better)
    if as_written and len(known):
        first = next(i for i, value in enumerate(values) if np.isfinite(value))
        note = f"{column.iloc[first]!r} of {name!r} read as {values[first]:.6g}"
    if quantity == "loss" and plain in _PERPLEXITIES:
        values, note = np.log(values), f"the loss is the logarithm of {name!r}, in nats"
    elif quantity == "loss" and plain in _LOSS_UNITS:
        note = f"the loss is in {_LOSS_UNITS[plain]}"
    return values, note


def _check_size(known: FloatArray, quantity: str, name: str, better: str) -> None:
    if len(known) and known.max() < _LEAST_SIZE:
        raise ValueError(
            f"{name} is {known.max():.4g} at most, which is no number of "
            f"{'parameters' if quantity == 'n_params' else 'tokens'}: {better}"
        )


def number_as_written(value: object, factor: float = 1.0) -> float | None:
    """Of 447M and the like; nan where there is no value, None where it is no number.

    Args:
        factor: unit of a number that does not say its own.
    """
    if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA:
        return np.nan
    if isinstance(value, int | float | np.number):
        return factor * float(value)
    text = str(value).strip()
    if text.lower() in _NO_VALUE:
        return np.nan
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    power = (found["power"] or "").lower()
    digits = re.sub(r"[,_ ]", "", found["digits"])
    number = float(digits + (found["exponent"] or ""))
    return number * (_WORDS.get(power) or _POWERS.get(power, factor))
