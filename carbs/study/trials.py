"""A study's trials as records of a search, and how trials end.

The attributes in which lies what Optuna has no place for are described in :mod:`carbs.study`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, Literal

import optuna
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from carbs.earlier import EarlierSweep
from carbs.records import Direction, Failure, Observation, Suggestion, as_number
from carbs.search_space import SearchSpace
from carbs.spaces import Params
from carbs.study.flat import unflatten

PREDICTED = "predicted"
FAILURE = "failure"
FORGOTTEN = "forgotten"
CURVE = "curve"
STOPPED = "stopped"
SPENT = "spent"
DROPPED = "dropped"
EARLIER_VALUES = "earlier_values"
_MOST_TOLD = 5  # trials that are left out
SAMPLING_S = "carbs:sampling_s"  # of a trial's duration, what its suggestion took

_logger = logging.getLogger(__name__)


def create_study(
    name: str,
    storage: str | optuna.storages.BaseStorage | None,
    direction: Literal["minimize", "maximize"] = "minimize",
) -> Study:
    """Open the study of that name, or create it with the objectives (output, cost)."""
    return optuna.create_study(
        study_name=name,
        storage=storage,
        directions=[direction, "minimize"],
        load_if_exists=True,
    )


def direction_of(study: Study) -> Direction:
    """Of a study's output.

    Raises:
        ValueError: its objectives are others than (output, cost), or one.
    """
    directions = study.directions
    if len(directions) > 2 or (len(directions) == 2 and directions[1] != StudyDirection.MINIMIZE):
        raise ValueError(
            f"study {study.study_name!r} has directions {[d.name for d in directions]}; "
            "carbs expects (output, cost), the cost to be minimized"
        )
    return "maximize" if directions[0] == StudyDirection.MAXIMIZE else "minimize"


@dataclass(frozen=True)
class Records:
    """All that a study knows, in the optimizer's types.

    Attributes:
        pending: configurations of running trials.
    """

    observations: list[Observation]
    failures: list[Failure]
    pending: list[Suggestion]


def records(
    trials: Sequence[FrozenTrial], space: SearchSpace, *, cost: str | None = None
) -> Records:
    """Read a study's trials, in the order of their numbers.

    Trials without some active parameter of the space and forgotten ones are left out, and so are
    finished ones whose cost nobody knows or is no positive, finite number, with a warning. Pruned
    ones count with a forecast of their end where a :class:`FrontPruner` has made one, else as
    failures.

    Args:
        trials: of the study.
        space: of their configurations.
        cost: where they have one objective, the user attribute with the cost; by default it is
            their duration in seconds.

    Raises:
        ValueError: none of the completed trials has a cost that could be used.
    """
    return records_of(trials, lambda trial: unflatten(space, trial.params), cost)


def earlier_sweep(
    study: Study, defaults: Mapping[str, Any] | None = None, *, cost: str | None = None
) -> EarlierSweep:
    """A study's ended trials, over whatever parameters they have, as data for a new search.

    Trials that were stopped early count as their forecasts, pruned ones without a forecast as
    failures.

    Args:
        study: with the objectives (output, cost), or with one.
        defaults: what it used of parameters that it did not search.
        cost: where it has one objective, the user attribute with a trial's cost; by default that is
            its duration in seconds.

    Raises:
        ValueError: the study's objectives are others, or none of the completed trials has a cost
            that could be used.
    """
    found = records_of(kept_trials(study), lambda trial: dict(trial.params) or None, cost)
    return EarlierSweep(
        direction=direction_of(study),
        observations=tuple(found.observations),
        failures=tuple(found.failures),
        defaults=dict(defaults or {}),
    )


def kept_trials(study: Study) -> list[FrozenTrial]:
    """A study's trials, in the order of their numbers, without those that the user has dropped."""
    dropped = set(study.user_attrs.get(DROPPED, ()))
    return [trial for trial in read_trials(study) if trial.number not in dropped]


def read_trials(study: Study) -> list[FrozenTrial]:
    """All of a study's trials, with what they used of parameters that were added later."""
    trials = study.get_trials(deepcopy=False)
    values = study.user_attrs.get(EARLIER_VALUES)
    return [with_values(trial, values) for trial in trials] if values else trials


def with_values(trial: FrozenTrial, values: Mapping[str, Any]) -> FrozenTrial:
    """A trial with these parameters as well, where it lacks them."""
    if trial.params.keys() >= values.keys():
        return trial
    filled = copy(trial)
    filled.params = {**values, **trial.params}
    return filled


def records_of(
    trials: Sequence[FrozenTrial],
    read: Callable[[FrozenTrial], Params | None],
    cost_attribute: str | None,
) -> Records:
    found = Records([], [], [])
    without_cost: list[int] = []
    impossible: list[str] = []
    for trial in trials:
        params = read(trial)
        if params is None or trial.user_attrs.get(FORGOTTEN):
            continue
        id = str(trial.number)
        if trial.state == TrialState.COMPLETE:
            try:
                cost = known_cost(trial, cost_attribute)
            except ValueError as error:
                impossible.append(str(error))
                continue
            if cost is None:
                without_cost.append(trial.number)
                continue
            output = trial.values[0]
            if abs(output) == float("inf"):
                reason = f"output is {output}"
                found.failures.append(Failure(params=params, reason=reason, cost=cost, id=id))
            else:
                spent = trial.user_attrs.get(SPENT) if len(trial.values) > 1 else None
                found.observations.append(
                    Observation(params=params, output=output, cost=cost, id=id, spent=spent)
                )
        elif trial.state == TrialState.PRUNED:
            spent = _spent(trial, cost_attribute)
            if STOPPED not in trial.user_attrs:
                found.failures.append(Failure(params=params, reason="pruned", cost=spent, id=id))
                continue
            stopped = dict(trial.user_attrs[STOPPED])
            if spent:  # one objective: there the pruner knows only which share was done
                stopped |= {"cost": spent * stopped["cost"] / stopped["spent"], "spent": spent}
            found.observations.append(Observation(params=params, id=id, **stopped))
        elif trial.state == TrialState.FAIL:
            failure = trial.user_attrs.get(FAILURE, {})
            found.failures.append(
                Failure(
                    params=params,
                    reason=failure.get("reason", "failed"),
                    cost=failure.get("cost"),
                    id=id,
                )
            )
        elif trial.state == TrialState.RUNNING:
            found.pending.append(
                Suggestion(id=id, params=params, **trial.user_attrs.get(PREDICTED, {}))
            )
    if impossible:
        _tell_impossible(impossible, bool(found.observations))
    if without_cost:
        _tell_without_cost(without_cost, cost_attribute, bool(found.observations))
    return found


def known_cost(trial: FrozenTrial, attribute: str | None) -> float | None:
    """What a trial cost; None where nobody knows.

    Raises:
        ValueError: that is no positive, finite number.
    """
    if len(trial.values or ()) > 1:
        return _positive("cost", trial, trial.values[1])
    if attribute is not None:
        found = trial.user_attrs.get(attribute)
        return None if found is None else _positive(attribute, trial, found)
    # A trial that was added to the study, not run in it, began when it ended.
    duration = trial.duration
    if not duration:
        return None
    return max(duration.total_seconds() - float(trial.system_attrs.get(SAMPLING_S, 0)), 1e-6)


def _spent(trial: FrozenTrial, attribute: str | None) -> float | None:
    """What a pruned trial spent; None where nobody knows, as in a study of two objectives."""
    has_one_objective = attribute is not None or bool(trial.intermediate_values)
    try:
        return known_cost(trial, attribute) if has_one_objective else None
    except ValueError:
        return None


def _positive(name: str, trial: FrozenTrial, value: Any) -> float:
    number = as_number(f"{name} of trial {trial.number}", value)
    if not 0 < number < float("inf"):
        raise ValueError(
            f"trial {trial.number} has {name} {number}, expected a positive, finite number"
        )
    return number


def _tell_impossible(messages: list[str], have_others: bool) -> None:
    if not have_others:
        raise ValueError(
            f"{messages[0]}, and no other trial has a cost that could be used: return what it "
            "took, in any unit, and begin another study"
        )
    for message in messages[:_MOST_TOLD]:
        _logger.warning("%s: the trial is left out", message)
    if len(messages) > _MOST_TOLD:
        _logger.warning("%d more trials are left out likewise", len(messages) - _MOST_TOLD)


def _tell_without_cost(numbers: list[int], attribute: str | None, have_others: bool) -> None:
    if attribute is None:
        what = "no duration, since they were added to the study"
    else:
        what = f"no user attribute {attribute!r}"
    message = f"trials {numbers[:20]} have {what}, so their cost is not known"
    if attribute is not None and not have_others:
        raise ValueError(
            f"{message}: call trial.set_user_attr({attribute!r}, ...) in the objective, or name "
            "another attribute as the sampler's cost"
        )
    _logger.warning("%s: left out", message)


def tell_failure(study: Study, number: int, reason: str, cost: float | None = None) -> None:
    """End a trial as a failure of its configuration, with its reason and what it spent.

    Raises:
        ValueError: the cost is negative or not finite.
    """
    cost = None if cost is None else as_number("cost", cost)
    if cost is not None and not 0 <= cost < float("inf"):
        raise ValueError(f"cost is {cost}, expected a finite number, at least 0, or None")
    set_attribute(study, number, FAILURE, {"reason": reason, "cost": cost})
    study.tell(number, state=TrialState.FAIL)


def tell_forgotten(study: Study, number: int, reason: str) -> None:
    """End a trial that was the machine's fault: the search learns nothing from it."""
    set_attribute(study, number, FORGOTTEN, reason)
    study.tell(number, state=TrialState.FAIL)


def tell_stopped(study: Study, number: int, spent: float) -> None:
    """End a trial that a :class:`FrontPruner` has decided to stop, with what it spent."""
    trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    stopped = study._storage.get_trial(trial_id).user_attrs[STOPPED]
    set_attribute(study, number, STOPPED, {**stopped, "spent": spent})
    study.tell(number, state=TrialState.PRUNED)


def set_attribute(study: Study, number: int, key: str, value: Any) -> None:
    """Write an attribute of a trial by its number: a resumed trial is no ``optuna.Trial``."""
    trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    study._storage.set_trial_user_attr(trial_id, key, value)
