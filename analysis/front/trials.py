"""A study as a pandas DataFrame, one row a trial."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter

from carbs.analysis.laws.runs import number_as_written
from carbs.records import Direction, Failure, Observation
from carbs.search_space import Param, SearchSpace
from carbs.spaces import ChoiceSpace, LinearSpace, LogitSpace, LogSpace, MixtureSpace
from carbs.study import (
    DROPPED,
    FAILURE,
    FORGOTTEN,
    PREDICTED,
    STOPPED,
    Records,
    flat_names,
    flatten,
    inferred_space,
    kept_trials,
    read_trials,
    records,
    unflatten,
)


def study_space(study: Study) -> SearchSpace:
    """The parameters that a sweep wrote down with its study, or that its trials have asked for.

    Raises:
        ValueError: the study was not made by a sweep, and what its trials asked for does not tell,
            or they have not the two objectives (output, cost).
    """
    text = study.user_attrs.get("space")
    if text is None:
        try:
            if len(study.directions) != 2:
                raise ValueError("it has not the two objectives (output, cost)")
            return inferred_space(study)
        except ValueError as error:
            raise ValueError(
                f"study {study.study_name!r} does not say what it searched: it was not made by "
                f"'carbs sweep', and {error}. Pass a SearchSpace instead"
            ) from None
    params = TypeAdapter(list[Param]).validate_json(text)
    attributes = study.user_attrs
    return SearchSpace(params, attributes.get("constraints", []), attributes.get("cost"))


def study_records(
    study: Study, space: SearchSpace | None = None
) -> tuple[SearchSpace, Records, Direction]:
    """What a study says: its space, its runs, and whether low outputs are good.

    Raises:
        ValueError: the study was not made by a sweep, and no space is given.
    """
    space = space or study_space(study)
    known = records(kept_trials(study), space)
    maximizes = study.directions[0] == StudyDirection.MAXIMIZE
    return space, known, "maximize" if maximizes else "minimize"


def frame_records(
    frame: pd.DataFrame, space: SearchSpace | None = None
) -> tuple[SearchSpace, Records]:
    """Runs from a frame with the columns ``output`` (or ``loss``) and ``cost``, one a parameter.

    Args:
        frame: one row a run; without a column ``state``, all have finished.
        space: by default guessed by :func:`frame_space`.

    Raises:
        ValueError: a column is missing, or rows that are not finite, which are named.
    """
    output = "output" if "output" in frame else "loss"
    _check_columns(frame, (output, "cost"))
    if not len(frame):
        raise ValueError("the frame has no rows: expected one a run")
    if "state" in frame and not (frame["state"] == "complete").any():
        raise ValueError(
            f"the frame's column 'state' has {sorted(map(str, frame['state'].unique()))}, and no "
            "run that is 'complete': write that for the finished runs, and 'failed' for those that "
            "could not be trained, or drop the column"
        )
    frame = _with_numbers(frame)
    for name in (output, "cost"):
        if _has_words(frame[name]):
            raise ValueError(f"column {name!r} holds {frame[name].iloc[0]!r}: expected numbers")
    if not (frame["cost"] > 0).any():
        raise ValueError("no row of the frame has a cost: expected a positive, finite number")
    space = space or frame_space(frame)
    names = [name for param in space.params for name in flat_names(param)]
    _check_columns(frame, names)
    observations, failures = [], []
    wrong = []
    ids = _ids(frame)
    for index, row in enumerate(frame.to_dict("records")):
        given = {name: row[name] for name in names if not pd.isna(row[name])}
        params = unflatten(space, given)
        state = row.get("state", "complete")
        if state == "failed" and params is not None:
            cost = None if pd.isna(row["cost"]) else float(row["cost"])
            failures.append(Failure(params=params, reason=str(row.get("reason")), cost=cost))
        elif state == "complete":
            measured = float(row[output]), float(row["cost"])
            if params is None or not np.isfinite(measured).all() or measured[1] <= 0:
                wrong.append(index)
                continue
            observations.append(
                Observation(id=ids[index], params=params, output=measured[0], cost=measured[1])
            )
    if wrong:
        raise ValueError(
            f"rows {wrong[:20]} have an output or a cost that is not finite, a cost that is not "
            "positive, or a parameter that is missing or outside its space: correct or drop them, "
            "or pass the space that was searched"
        )
    return space, Records(observations, failures, [])


def _check_columns(frame: pd.DataFrame, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in frame]
    if missing:
        raise ValueError(f"the frame lacks the columns {missing}; it has {list(frame.columns)}")


_NO_PARAMETER = ("number", "state", "output", "loss", "cost", "reason", "flops")
# Names of columns that tell runs apart, or say where they ran, but not what was trained.
_LABELS = r"(\w+_)?(seed|id|date|timestamp|hostname)|(wall_)?time|run|name|trial|index|unnamed: \d+"


def frame_space(frame: pd.DataFrame) -> SearchSpace:
    """A space guessed from the columns of a frame of runs.

    Columns ``mix.code``, ``mix.prose`` whose rows sum to one are a mixture; words are categories;
    positive numbers over more than a factor of three are on a logarithmic scale, fractions on that
    of their odds, and other numbers on a linear one. Columns of whole numbers stay whole. The
    centre is the cheapest run. A column that lacks values exactly beside some words of another
    exists only beside its other words. Columns that do not vary, or that only tell runs apart
    (``seed``, ``run_id``, ``date``), are left out.

    Raises:
        ValueError: no column is left, or one holds so many words that they are no choices.
    """
    columns = [str(name) for name in frame.columns if _is_parameter(str(name))]
    cheapest_first = frame.sort_values("cost")
    params: list[Param] = []
    mixes = _mixtures(frame, columns)
    of_mixes = {f"{name}.{part}" for name, parts in mixes.items() for part in parts}
    words = [name for name in columns if name not in of_mixes and _has_words(frame[name])]
    for name in columns:
        if name in of_mixes:
            continue
        values = frame[name].dropna()
        if values.nunique() < 2:
            continue
        when = _condition(frame, name, words)
        first = cheapest_first[name].dropna().iloc[0]
        if name in words:
            params.append(Param(name, _choices(values), first, when))
            continue
        low, high = float(values.min()), float(values.max())
        center = float(first)
        is_whole = bool((values == values.round()).all())
        if is_whole:
            small = high <= 3 * low or low <= 0
            linear = LinearSpace(scale=(high - low) / 2, is_integer=True)
            whole = linear if small else LogSpace(is_integer=True)
            params.append(Param(name, whole, int(center), when))
        elif low > 0 and high > 3 * low and not (high < 1 and low > 0.02):
            params.append(Param(name, LogSpace(), center, when))
        elif low > 0 and high < 1:
            params.append(Param(name, LogitSpace(), center, when))
        else:
            params.append(Param(name, LinearSpace(scale=(high - low) / 2), center, when))
    for name, components in mixes.items():
        parts = [f"{name}.{part}" for part in components]
        shares = cheapest_first[parts].dropna().iloc[0]
        weights = dict(zip(components, (shares / shares.sum()).tolist(), strict=True))
        when = _condition(frame, parts[0], words)
        params.append(Param(name, MixtureSpace(components), weights, when))
    if not params:
        raise ValueError(
            f"the frame has {len(frame)} row{'s' * (len(frame) != 1)}, and none of its columns "
            f"{columns} varies: what was searched shows in runs that differ. Give more of them, or "
            "a SearchSpace"
        )
    return SearchSpace(params)


def _has_words(column: pd.Series[Any]) -> bool:
    return not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)


def _choices(words: pd.Series[Any]) -> ChoiceSpace:
    choices = sorted(words.unique().tolist(), key=str)
    if len(choices) > max(len(words) / 2, _MANY_WORDS):
        raise ValueError(
            f"column {words.name!r} holds {len(choices)} different words in {len(words)} rows, "
            f"such as {choices[0]!r}, which are no choices: drop it, write numbers as 1.2e9 or "
            "447M, or pass the SearchSpace that was searched"
        )
    return ChoiceSpace(choices)


def _condition(frame: pd.DataFrame, name: str, words: Sequence[str]) -> dict[str, list[Any]]:
    """Beside which words of another column the name has values, where it lacks some."""
    has = frame[name].notna()
    for other in words if not has.all() else ():
        beside = frame.loc[has, other]
        without = set(frame.loc[~has, other].dropna())
        if beside.notna().all() and without and not without & set(beside):
            return {other: sorted(set(beside), key=str)}
    return {}


def _mixtures(frame: pd.DataFrame, columns: Sequence[str]) -> dict[str, list[str]]:
    """Columns of one name before the last dot, where their numbers are shares; by that name."""
    groups: dict[str, list[str]] = {}
    for name, dot, part in (column.rpartition(".") for column in columns):
        if dot:
            groups.setdefault(name, []).append(part)
    found = {}
    for name, parts in groups.items():
        shares = frame[[f"{name}.{part}" for part in parts]]
        is_number = all(pd.api.types.is_numeric_dtype(kind) for kind in shares.dtypes)
        if len(parts) > 1 and is_number:
            rows = shares.dropna().to_numpy(dtype=float)
            if len(rows) and (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=_ROUNDED):
                found[name] = parts
    return found


_MANY_WORDS = 8  # more, in more than half of the rows, are no choices
_ROUNDED = 0.05  # by which shares that were rounded may miss one


def _is_parameter(name: str) -> bool:
    if name in _NO_PARAMETER or name.startswith(("predicted_", "metrics.")):
        return False
    return not re.fullmatch(_LABELS, name.lower())


def _with_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its columns of numbers that are written as words as numbers.

    They are read as :func:`carbs.analysis.fit_runs` reads them: ``3e-4``, ``447M``, ``1,200``.

    Raises:
        ValueError: a column holds both, which is named with the words.
    """
    found = frame.copy()
    for name in frame.columns:
        is_read = name in ("output", "loss", "cost") or _is_parameter(str(name))
        if not is_read or pd.api.types.is_numeric_dtype(frame[name]):
            continue
        values = frame[name].dropna()
        if not values.map(lambda value: isinstance(value, str)).all():
            continue
        numbers = values.map(number_as_written).astype(float)
        if numbers.notna().all():
            found[name] = numbers.reindex(frame.index)
        elif numbers.notna().mean() > 0.5:
            words = sorted(set(values[numbers.isna()]))[:5]
            raise ValueError(
                f"column {name!r} holds numbers and words: correct or drop the rows with {words}"
            )
    return found


def trials_frame(study: Study, space: SearchSpace | None = None) -> pd.DataFrame:
    """Every trial with its parameters, what was predicted, and what was measured.

    Columns: ``number``, ``state`` (complete, failed, running, stopped, forgotten), ``output``,
    ``cost``, ``reason`` (of a failure), ``predicted_output``, ``predicted_cost`` and their ``_low``
    and ``_high``, one for each parameter (mixtures as ``mix.code``), and one for each metric
    (``metrics.flops``, ``metrics.evaluations.values.accuracy``). The cost of a failure, and of a
    run that was stopped early, is what it spent. A parameter that is inactive in a trial has no
    value there.

    Args:
        study: of a sweep, or of a :class:`carbs.study.CarbsSampler`.
        space: where neither a sweep wrote it down nor the trials tell.
    """
    space = space or study_space(study)
    names = [name for param in space.params for name in flat_names(param)]
    rows = []
    dropped = set(study.user_attrs.get(DROPPED, ()))
    for trial in read_trials(study):
        params = unflatten(space, trial.params)
        if params is None:
            continue
        attributes = trial.user_attrs
        failure = attributes.get(FAILURE, {})
        predicted = attributes.get(PREDICTED, {})
        spent = failure.get("cost", attributes.get(STOPPED, {}).get("spent"))
        output, cost = (trial.values or [None, spent])[:2]
        reason = "pruned" if _is_pruned(trial) else None
        row: dict[str, Any] = {
            "number": trial.number,
            "state": _state(trial, trial.number in dropped),
            "output": output,
            "cost": cost,
            "reason": failure.get("reason", attributes.get(FORGOTTEN, reason)),
        }
        for name in ("output", "cost"):
            low, high = predicted.get(f"predicted_{name}_interval") or (None, None)
            row[f"predicted_{name}"] = predicted.get(f"predicted_{name}")
            row[f"predicted_{name}_low"], row[f"predicted_{name}_high"] = low, high
        row |= dict.fromkeys(names) | flatten(params)
        row |= _flat_metrics(attributes.get("metrics", {}), "metrics")
        rows.append(row)
    frame = pd.DataFrame(rows)
    numbers = [c for c in frame.columns if c in ("output", "cost") or c.startswith("predicted")]
    # In one piece: metrics are many, and pandas warns of a frame of a hundred.
    return frame.astype(dict.fromkeys(numbers, float)).copy()


def run_metrics(data: Study | pd.DataFrame, space: SearchSpace | None = None) -> pd.DataFrame:
    """Metrics of the finished runs by their plain names, with ``id`` and ``cost``: one row each."""
    frame = data if isinstance(data, pd.DataFrame) else trials_frame(data, space)
    frame = frame.assign(id=_ids(frame))
    if "state" in frame:
        frame = frame[frame["state"] == "complete"]
    named = {c: str(c).removeprefix("metrics.") for c in frame.columns}
    kept = [c for c in frame.columns if str(c).startswith("metrics.")]
    kept += [c for c in ("cost", "flops", "id") if c in frame]
    return frame[kept].rename(columns=named)


def _ids(frame: pd.DataFrame) -> list[str]:
    """Of the runs: their numbers, or their places."""
    return [str(number) for number in (frame["number"] if "number" in frame else range(len(frame)))]


def _state(trial: FrozenTrial, is_dropped: bool) -> str:
    if is_dropped or FORGOTTEN in trial.user_attrs:
        return "forgotten"
    if trial.state == TrialState.FAIL or _is_pruned(trial):
        return "failed"
    return "stopped" if trial.state == TrialState.PRUNED else trial.state.name.lower()


def _is_pruned(trial: FrozenTrial) -> bool:
    """Whether it was stopped early without a forecast of its end."""
    return trial.state == TrialState.PRUNED and STOPPED not in trial.user_attrs


def _flat_metrics(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            flat |= _flat_metrics(value, name)
        else:
            flat[name] = json.dumps(value) if isinstance(value, list) else value
    return flat
