"""An Optuna study as the record of a search: its trials are our records, and back.

A study of ours has two objectives, (output, cost); in one with a single objective the cost of a
trial is its duration in seconds, or what one of its user attributes says. Each parameter is an
Optuna parameter of the same name; a mixture is one for each component, ``mix.code``. A parameter
that is inactive in a trial is not stored with it. What Optuna has no place for lies in trial
attributes: what was predicted when a trial was suggested (``predicted``), why it failed
(``failure``), its learning curve (``curve``, rows of progress, output and cost), and where it was
stopped early, the forecast of its end and what it spent (``stopped``). Where the cost of a trial
was corrected for the speed of its machine, ``spent`` is what was measured. A failed trial marked
``forgotten`` was the machine's fault and teaches nothing; nor do those whose numbers the study's
attribute ``dropped`` lists. Its attribute ``earlier_values`` has what trials used that lack a
parameter which was added later.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, NoReturn

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from carbs.allowance import Allowance
from carbs.constraints import Constraint, as_tuple
from carbs.define_by_run import (
    ENQUEUED,
    SUGGESTED,
    DefineByRunSpace,
    asked,
    contains,
    draw,
    enqueued,
    middle,
    nearest,
)
from carbs.earlier import EarlierRuns, EarlierSweep
from carbs.early_stopping import (
    MIN_PROGRESS,
    MISS_SHARE,
    FinishedRun,
    forecast,
    is_off_front,
)
from carbs.listed import described, listed, unlisted
from carbs.records import Direction, Failure, Observation, Suggestion, as_number
from carbs.search_space import Param, SearchSpace
from carbs.spaces import ChoiceSpace, FloatArray, LogSpace, MixtureSpace, Params, Space

PREDICTED = "predicted"
FAILURE = "failure"
FORGOTTEN = "forgotten"
CURVE = "curve"
STOPPED = "stopped"
SPENT = "spent"
DROPPED = "dropped"
EARLIER_VALUES = "earlier_values"
SAMPLING_S = "carbs:sampling_s"  # of a trial's duration, what its suggestion took

_logger = logging.getLogger(__name__)
_ONE_AT_A_TIME = threading.Lock()  # of threads, the second is to know what the first will try

# Optuna wants bounds; these stand for "none".
_LARGEST_FLOAT = 1e300
_LARGEST_INT = 2**53


def flatten(params: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as Optuna stores it: one entry a number, mixtures by component."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat.update({f"{name}.{component}": weight for component, weight in value.items()})
        else:
            flat[name] = value
    return flat


def flat_names(param: Param) -> list[str]:
    """The names under which Optuna stores a parameter: its own, or one for each component."""
    if isinstance(param.space, MixtureSpace):
        return [f"{param.name}.{component}" for component in param.space.components]
    return [param.name]


def unflatten(space: SearchSpace, flat: Mapping[str, Any]) -> Params | None:
    """The configuration in a trial's parameters.

    None where it lacks one that is active, or gives weight to a component that a mixture lacks.
    """
    params: Params = {}
    active = space.active_names(flat)
    for param in space.params:
        if param.name not in active:
            continue
        names = flat_names(param)
        if any(name not in flat for name in names):
            return None
        if isinstance(param.space, MixtureSpace):
            if any(flat[key] for key in flat if _is_foreign(key, param.name, names)):
                return None
            params[param.name] = {
                component: float(flat[name])
                for component, name in zip(param.space.components, names, strict=True)
            }
        else:
            params[param.name] = flat[param.name]
    return params


def _is_foreign(key: str, mixture: str, names: Sequence[str]) -> bool:
    return key.startswith(f"{mixture}.") and key not in names


def distributions(space: SearchSpace) -> dict[str, BaseDistribution]:
    """What Optuna is told of each parameter, by flat name."""
    named: dict[str, BaseDistribution] = {}
    for param in space.params:
        named |= dict.fromkeys(flat_names(param), _distribution(param.space))
    return named


def _distribution(space: Space) -> BaseDistribution:
    if isinstance(space, ChoiceSpace):
        return CategoricalDistribution(space.choices)
    if isinstance(space, MixtureSpace):
        return FloatDistribution(0.0, 1.0)
    is_log = isinstance(space, LogSpace)
    low, high = space.limits()
    if space.is_integer:
        step = space.rounding_factor
        least = int(max(low, -_LARGEST_INT // step * step))
        greatest = int(min(high, _LARGEST_INT // step * step))
        return IntDistribution(least, greatest, step=step, log=is_log and step == 1)
    least_float = max(low, 1 / _LARGEST_FLOAT if is_log else -_LARGEST_FLOAT)
    return FloatDistribution(least_float, min(high, _LARGEST_FLOAT), log=is_log)


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
    pruned ones without a forecast of their end, and finished ones whose cost nobody knows.

    Args:
        trials: of the study.
        space: of their configurations.
        cost: where they have one objective, the user attribute with the cost; by default it is
            their duration in seconds.

    Raises:
        ValueError: a completed trial has a cost that is not positive, or none has the attribute.
    """
    return _records(trials, lambda trial: unflatten(space, trial.params), cost)


def inferred_space(study: Study) -> SearchSpace:
    """What the trials of a study have asked for (see :mod:`carbs.define_by_run`).

    Raises:
        ValueError: they have asked for nothing yet, or for what no list of parameters says: shares
            of a mixture, choices that are no plain values, parameters that exist for other reasons
            than choices.
    """
    trials = kept_trials(study)
    inferred = DefineByRunSpace(asked(trials), trials)
    if inferred.space is None:
        raise ValueError(f"no trial of study {study.study_name!r} has asked for a parameter")
    if inferred.is_own:
        raise ValueError(
            f"the parameters of study {study.study_name!r} have no list: {inferred.is_own}"
        )
    return inferred.space


def earlier_sweep(
    study: Study, defaults: Mapping[str, Any] | None = None, *, cost: str | None = None
) -> EarlierSweep:
    """A study's ended trials, over whatever parameters they have, as data for a new search.

    Trials that were stopped early count as their forecasts, pruned ones without a forecast do not.

    Args:
        study: with the objectives (output, cost), or with one.
        defaults: what it used of parameters that it did not search.
        cost: where it has one objective, the user attribute with a trial's cost; by default that is
            its duration in seconds.

    Raises:
        ValueError: the study's objectives are others, or a completed trial has a cost that is not
            positive.
    """
    found = _records(kept_trials(study), lambda trial: dict(trial.params) or None, cost)
    return EarlierSweep(
        direction=_direction(study),
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


def _records(
    trials: Sequence[FrozenTrial],
    read: Callable[[FrozenTrial], Params | None],
    cost_attribute: str | None,
) -> Records:
    found = Records([], [], [])
    without_cost: list[int] = []
    for trial in trials:
        params = read(trial)
        if params is None or trial.user_attrs.get(FORGOTTEN):
            continue
        id = str(trial.number)
        if trial.state == TrialState.COMPLETE:
            cost = _cost(trial, cost_attribute)
            if cost is None:
                without_cost.append(trial.number)
                continue
            if not 0 < cost < float("inf"):
                raise ValueError(
                    f"trial {trial.number} has cost {cost}, expected a positive, finite number"
                )
            output = trial.values[0]
            if abs(output) == float("inf"):
                reason = f"output is {output}"
                found.failures.append(Failure(params=params, reason=reason, cost=cost, id=id))
            else:
                spent = trial.user_attrs.get(SPENT) if len(trial.values) > 1 else None
                found.observations.append(
                    Observation(params=params, output=output, cost=cost, id=id, spent=spent)
                )
        elif trial.state == TrialState.PRUNED and STOPPED in trial.user_attrs:
            stopped = dict(trial.user_attrs[STOPPED])
            spent = _cost(trial, cost_attribute) if trial.intermediate_values else None
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
    if without_cost:
        _tell_without_cost(without_cost, cost_attribute, bool(found.observations))
    return found


def _cost(trial: FrozenTrial, attribute: str | None) -> float | None:
    """What a trial cost; None where nobody knows."""
    if len(trial.values or ()) > 1:
        return float(trial.values[1])
    if attribute is not None:
        found = trial.user_attrs.get(attribute)
        return None if found is None else as_number(f"{attribute} of trial {trial.number}", found)
    # A trial that was added to the study, not run in it, began when it ended.
    duration = trial.duration
    if not duration:
        return None
    return max(duration.total_seconds() - float(trial.system_attrs.get(SAMPLING_S, 0)), 1e-6)


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


class CarbsSampler(BaseSampler):
    """CARBS as an Optuna sampler, for studies with the objectives (output, cost), or with one.

    Without a list of parameters it searches what the trials ask for, as Optuna's own samplers do::

        def objective(trial):
            rate = trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
            return train(rate)  # loss, seconds

        study = optuna.create_study(directions=["minimize", "minimize"], sampler=CarbsSampler())
        study.optimize(objective, n_trials=50)

    The search starts in the middle of each range and with the first of the choices, or with what is
    enqueued first, which had better be good and cheap. Which parameters exist beside which choices
    is learnt from the trials (:mod:`carbs.define_by_run`), those of other samplers included.

    With a list, ``study.ask()`` gives a trial that already has every active parameter, in
    ``trial.params``. An objective may ask for them by ``trial.suggest_float`` and its like, but
    with the same names and ranges; else that is an error.

    In a study with one objective the cost of a trial is its duration in seconds, or what it says in
    a user attribute.

    Args:
        params: what is searched; None to learn it from the trials.
        constraints: what every suggestion meets (see :mod:`carbs.constraints`); enqueued values
            may violate them. They need the list of parameters.
        max_cost: of one run; None for no limit.
        n_trials, budget: how many trials there will be, and what all of them together may cost, as
            far as that is known.
        cost: in a study with one objective, the user attribute in which a trial says what it cost;
            None for its duration in seconds.
        cost_exponent: from 0 (only the number of trials matters) to 1 (only their total cost); by
            default as these limits have it, and without any first 1, then ever less.
        earlier: other sweeps to learn from (see :mod:`carbs.earlier`).
        seed: same trials and seed, same suggestion.

    Raises:
        ValueError: constraints without a list, or what :class:`carbs.SearchSpace` refuses. While
            trials run: one was enqueued with a value out of range, or asks for something else than
            the list has. Such a trial ends as forgotten: the search learns nothing from it.
    """

    def __init__(
        self,
        params: Sequence[Param] | None = None,
        *,
        constraints: Iterable[Constraint] = (),
        max_cost: float | None = None,
        n_trials: int | None = None,
        budget: float | None = None,
        cost: str | None = None,
        cost_exponent: float | None = None,
        earlier: Sequence[EarlierSweep] = (),
        seed: int = 0,
    ) -> None:
        if params is None and as_tuple(constraints):
            raise ValueError(
                "constraints need to know the parameters: give CarbsSampler the list of them"
            )
        self._listed = None if params is None else SearchSpace(params, constraints)
        self.max_cost = max_cost
        self.allowance = Allowance(n_trials, budget)
        self.cost = cost
        self.cost_exponent = cost_exponent
        self.earlier = tuple(earlier)
        self.seed = seed
        self._seen: dict[str, list[EarlierRuns]] = {}
        self._distributions = {} if self._listed is None else distributions(self._listed)

    @property
    def space(self) -> SearchSpace:
        """Of the list of parameters.

        Raises:
            ValueError: there is none.
        """
        if self._listed is None:
            raise ValueError("this CarbsSampler has no list of parameters: it has no space yet")
        return self._listed

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Of a list, store a suggestion's parameters with the trial: it is complete at once."""
        started = time.monotonic()
        try:
            direction = _direction(study)
            if self.cost is not None and len(study.directions) > 1:
                raise ValueError(
                    f"cost={self.cost!r} names a user attribute, but in study "
                    f"{study.study_name!r} the cost is the second objective: leave it out"
                )
            if self._listed is None:
                self._hold_enqueued(study, trial)
            else:
                self._store_suggestion(study, trial, direction)
                self._store_time(study, trial, started)
        except ValueError as error:  # nobody else would end it
            _forget(study, trial, str(error))
            study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            raise

    # With a list of parameters.

    def _store_suggestion(self, study: Study, trial: FrozenTrial, direction: Direction) -> None:
        fixed = enqueued(trial)
        self._check_enqueued(trial, fixed)
        with _ONE_AT_A_TIME:
            others = [other for other in kept_trials(study) if other.number != trial.number]
            known = records(others, self.space, cost=self.cost)
            suggestion = self.suggest(known, trial.number, direction)
            flat = self._with_fixed(suggestion.params, fixed)
            for name, value in flat.items():
                distribution = self._distributions[name]
                study._storage.set_trial_param(
                    trial._trial_id, name, distribution.to_internal_repr(value), distribution
                )
        trial.params = dict(flat)
        trial.distributions = self._refusing(study, trial, list(flat))
        if not set(fixed) & set(flat):
            predicted = suggestion.model_dump(mode="json", exclude={"id", "params"})
            study._storage.set_trial_user_attr(trial._trial_id, PREDICTED, predicted)
            trial.user_attrs[PREDICTED] = predicted

    def _check_enqueued(self, trial: FrozenTrial, fixed: Mapping[str, Any]) -> None:
        for name, value in fixed.items():
            if name not in self._distributions:
                raise ValueError(
                    f"trial {trial.number} was enqueued with {name!r}, but the list of parameters "
                    f"has only {sorted(self._distributions)}"
                )
            _check_enqueued(trial, name, value, self._distributions[name])

    def _refusing(
        self, study: Study, trial: FrozenTrial, names: Sequence[str]
    ) -> dict[str, BaseDistribution]:
        """Of a trial, which is forgotten if it asks for something else."""

        def refuse(message: str) -> NoReturn:
            _forget(study, trial, message)
            raise ValueError(message)

        params = {name: param for param in self.space.params for name in flat_names(param)}
        return {
            name: listed(name, params[name], self._distributions[name], refuse) for name in names
        }

    def _with_fixed(self, suggested: Params, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Enqueued values in place of suggested ones; the rest of a mixture shares what is left.

        A parameter that becomes active by an enqueued value starts at its centre.

        Raises:
            ValueError: a mixture's enqueued weights do not leave room for the others.
        """
        centers = {param.name: param.search_center for param in self.space.params}
        flat = flatten(centers | suggested)
        merged = {name: fixed.get(name, value) for name, value in flat.items()}
        active = self.space.active_names(merged)
        kept: dict[str, Any] = {}
        for param in self.space.params:
            names = flat_names(param)
            if param.name not in active:
                continue
            if isinstance(param.space, MixtureSpace):
                free = [name for name in names if name not in fixed]
                left = 1 - sum(merged[name] for name in names if name in fixed)
                if left < -1e-6 or (not free and left > 1e-6):
                    raise ValueError(
                        f"enqueued weights of parameter {param.name!r} sum to {1 - left:.6g}, "
                        "expected 1"
                    )
                shared = sum(merged[name] for name in free)
                for name in free:
                    share = merged[name] / shared if shared > 0 else 1 / len(free)
                    merged[name] = max(left, 0.0) * share
            kept |= {name: merged[name] for name in names}
        return kept

    def suggest(self, known: Records, number: int, direction: Direction) -> Suggestion:
        """What the trial of this number is to try, by these records, out of the list."""
        return self._propose(self.space, known, number, direction)

    # Without one.

    def _hold_enqueued(self, study: Study, trial: FrozenTrial) -> None:
        """Keep enqueued values from Optuna, which takes them at any range: they come from here."""
        fixed = enqueued(trial)
        if not fixed:
            return
        known = asked([other for other in kept_trials(study) if other.number != trial.number])
        for name, value in fixed.items():
            if name in known:
                _check_enqueued(trial, name, value, known[name])
        study._storage.set_trial_system_attr(trial._trial_id, ENQUEUED, fixed)
        trial.system_attrs = {**trial.system_attrs, "fixed_params": {}, ENQUEUED: fixed}

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """What the trials so far have asked for; of a list nothing, as it is stored already."""
        if self._listed is not None:
            return {}
        fixed = enqueued(trial)
        return {name: d for name, d in asked(kept_trials(study)).items() if name not in fixed}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """A suggestion for these parameters, which the other trials then know to be pending."""
        if self._listed is not None or not search_space:
            return {}
        started, direction = time.monotonic(), _direction(study)
        with _ONE_AT_A_TIME:
            others = [other for other in kept_trials(study) if other.number != trial.number]
            inferred = DefineByRunSpace(search_space, others)
            if inferred.space is None:
                return inferred.values({})
            known = _records(
                others,
                lambda other: (
                    inferred.read_pending(other)
                    if other.state == TrialState.RUNNING
                    else inferred.read(other.params)
                ),
                self.cost,
            )
            suggestion = self._propose(inferred.space, known, trial.number, direction)
            values = inferred.values(suggestion.params)
            study._storage.set_trial_system_attr(trial._trial_id, SUGGESTED, values)
        predicted = suggestion.model_dump(mode="json", exclude={"id", "params"})
        if not enqueued(trial):
            study._storage.set_trial_user_attr(trial._trial_id, PREDICTED, predicted)
        self._store_time(study, trial, started)
        return values

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """What was enqueued; else near what was suggested, the middle at first, or at random."""
        if self._listed is not None:
            message = self._why_unlisted(trial, param_name, param_distribution)
            _forget(study, trial, message)
            raise ValueError(message)
        fixed = enqueued(trial)
        if param_name in fixed:
            try:
                _check_enqueued(trial, param_name, fixed[param_name], param_distribution)
            except ValueError as error:
                _forget(study, trial, str(error))
                raise
            return fixed[param_name]
        suggested = trial.system_attrs.get(SUGGESTED, {})
        if param_name in suggested and not isinstance(param_distribution, CategoricalDistribution):
            # It was suggested for the range that the trials before have asked for.
            study._storage.set_trial_user_attr(trial._trial_id, PREDICTED, {})
            return nearest(param_distribution, suggested[param_name])
        if not any(param_name in other.distributions for other in kept_trials(study)):
            return middle(param_distribution)
        key = [abs(self.seed), self.seed < 0, trial.number, *param_name.encode()]
        return draw(param_distribution, np.random.default_rng(key))

    def _why_unlisted(self, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> str:
        if name not in self._distributions:
            return unlisted(name, distribution, self._distributions)
        param = next(param for param in self.space.params if name in flat_names(param))
        conditions = [
            f"{parent!r} is one of {list(choices)}" for parent, choices in param.when.items()
        ]
        return (
            f"the trial asks for {name!r}, but the list of parameters says that it exists only "
            f"when {' and '.join(conditions)}; the trial has {dict(trial.params)}"
        )

    def _store_time(self, study: Study, trial: FrozenTrial, started: float) -> None:
        if self.cost is None and len(study.directions) == 1:
            seconds = time.monotonic() - started
            study._storage.set_trial_system_attr(trial._trial_id, SAMPLING_S, seconds)

    def _propose(
        self, space: SearchSpace, known: Records, number: int, direction: Direction
    ) -> Suggestion:
        from carbs.optimizer import propose, seen_from  # slow, and a look at a study needs neither

        key = f"{direction} {space.params}" if self.earlier else ""
        if key not in self._seen:
            self._seen[key] = seen_from(space, self.earlier, direction)
        return propose(
            space,
            known.observations,
            known.failures,
            [suggestion.params for suggestion in known.pending],
            [str(number)],
            earlier=self._seen[key],
            direction=direction,
            max_cost=self.max_cost,
            allowance=self.allowance,
            cost_exponent=self.cost_exponent,
            seed=self.seed,
        )[0]

    def template(self, suggestion: Suggestion, **attributes: Any) -> FrozenTrial:
        """A running trial of a suggestion, to be added to a study in one step."""
        flat = flatten(suggestion.params)
        predicted = suggestion.model_dump(mode="json", exclude={"id", "params"})
        return FrozenTrial(
            number=-1,
            trial_id=-1,
            state=TrialState.RUNNING,
            value=None,
            values=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params=flat,
            distributions={name: self._distributions[name] for name in flat},
            user_attrs={PREDICTED: predicted, **attributes},
            system_attrs={},
            intermediate_values={},
        )


def _forget(study: Study, trial: FrozenTrial, reason: str) -> None:
    study._storage.set_trial_user_attr(trial._trial_id, FORGOTTEN, reason)


def _check_enqueued(
    trial: FrozenTrial, name: str, value: Any, distribution: BaseDistribution
) -> None:
    if not contains(distribution, value):
        raise ValueError(
            f"trial {trial.number} was enqueued with {name} = {value!r}, which is out of range: "
            f"it is {described(distribution)}. The trial is forgotten; enqueue another"
        )


def _direction(study: Study) -> Direction:
    directions = study.directions
    if len(directions) > 2 or (len(directions) == 2 and directions[1] != StudyDirection.MINIMIZE):
        raise ValueError(
            f"study {study.study_name!r} has directions {[d.name for d in directions]}; "
            "carbs expects (output, cost), the cost to be minimized"
        )
    return "maximize" if directions[0] == StudyDirection.MAXIMIZE else "minimize"


class FrontPruner(BasePruner):
    """Stops a trial that will end off the front of cost against output, and forecasts its end.

    See :mod:`carbs.early_stopping`. In a study with one objective it is a pruner like any other:
    the trial calls ``trial.report(value, step)`` and asks ``trial.should_prune()``. All trials cost
    the same there.

    Optuna refuses both calls in a study with two objectives. There, keep a trial's reports as its
    attribute ``curve``, rows of (progress, output, cost so far), ask ``pruner.prune(study, trial)``
    and end the trial with :func:`tell_stopped`; ``carbs sweep`` does so.

    Args:
        miss_share: no more than this share of the trials that would be on the front is stopped.
        min_progress: no trial is stopped before this share of it is done.
        n_steps: the last step that a trial reports; only for studies with one objective.
    """

    def __init__(
        self,
        *,
        miss_share: float = MISS_SHARE,
        min_progress: float = MIN_PROGRESS,
        n_steps: int | None = None,
    ) -> None:
        self.miss_share = miss_share
        self.min_progress = min_progress
        self.n_steps = n_steps

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to stop the trial; if so, its attribute ``stopped`` says how it would end.

        Raises:
            ValueError: a trial has reported steps, but ``n_steps`` is not known.
        """
        completed = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        finished = [
            FinishedRun(self._curve(other), *(*other.values, 1.0)[:2])
            for other in completed
            if np.isfinite(other.values[0])
        ]
        is_maximized = study.directions[0] == StudyDirection.MAXIMIZE
        direction: Direction = "maximize" if is_maximized else "minimize"
        curve = self._curve(trial)
        end = forecast(
            curve,
            finished,
            miss_share=self.miss_share,
            min_progress=self.min_progress,
            direction=direction,
        )
        if end is None or not is_off_front(end, finished, direction=direction):
            return False
        stopped = {**asdict(end), "spent": curve[-1, 2]}
        del stopped["best_output"]
        study._storage.set_trial_user_attr(trial._trial_id, STOPPED, stopped)
        return True

    def _curve(self, trial: FrozenTrial) -> FloatArray:
        """Shape ``(t, 3)``: progress, output, cost."""
        rows = trial.user_attrs.get(CURVE, [])
        if trial.intermediate_values and not rows:
            if self.n_steps is None:
                raise ValueError(
                    f"trial {trial.number} has reported steps: tell FrontPruner n_steps, the last "
                    "step of a run"
                )
            shares = {step / self.n_steps: y for step, y in trial.intermediate_values.items()}
            rows = [(f, y, f) for f, y in sorted(shares.items()) if 0 < f <= 1 and np.isfinite(y)]
        return np.reshape(np.array(rows, dtype=float), (-1, 3))


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
