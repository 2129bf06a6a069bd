"""A study as a pandas DataFrame, one row a trial."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pandas as pd
from optuna.study import Study
from pydantic import TypeAdapter

from carbs.space import Param, SearchSpace
from carbs.study import (
    FAILURE,
    FORGOTTEN,
    PREDICTED,
    STOPPED,
    flat_names,
    flatten,
    unflatten,
)


def study_space(study: Study) -> SearchSpace:
    """The parameters that a sweep wrote down with its study.

    Raises:
        ValueError: the study was not made by a sweep.
    """
    text = study.user_attrs.get("space")
    if text is None:
        raise ValueError(
            f"study {study.study_name!r} does not say what it searched: it was not made by "
            "'carbs sweep'. Pass a SearchSpace instead"
        )
    params = TypeAdapter(list[Param]).validate_json(text)
    return SearchSpace(params, study.user_attrs.get("constraints", []))


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
        space: where the study was not made by a sweep.
    """
    space = space or study_space(study)
    names = [name for param in space.params for name in flat_names(param)]
    rows = []
    for trial in study.get_trials(deepcopy=False):
        params = unflatten(space, trial.params)
        if params is None:
            continue
        attributes = trial.user_attrs
        failure = attributes.get(FAILURE, {})
        predicted = attributes.get(PREDICTED, {})
        spent = failure.get("cost", attributes.get(STOPPED, {}).get("spent"))
        output, cost = (trial.values or [None, spent])[:2]
        row: dict[str, Any] = {
            "number": trial.number,
            "state": _state(trial.state.name, FORGOTTEN in attributes),
            "output": output,
            "cost": cost,
            "reason": failure.get("reason", attributes.get(FORGOTTEN)),
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
    return frame.astype(dict.fromkeys(numbers, float))


def _state(name: str, is_forgotten: bool) -> str:
    if is_forgotten:
        return "forgotten"
    return {"FAIL": "failed", "PRUNED": "stopped"}.get(name, name.lower())


def _flat_metrics(metrics: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        name = f"{prefix}.{key}"
        if isinstance(value, Mapping):
            flat |= _flat_metrics(value, name)
        else:
            flat[name] = json.dumps(value) if isinstance(value, list) else value
    return flat
