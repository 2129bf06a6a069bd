"""CARBS as an Optuna sampler, with a list of parameters or by what the trials ask for."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from carbs.allowance import Allowance, check_limit
from carbs.constraints import Constraint, as_tuple
from carbs.earlier import EarlierRuns, EarlierSweep
from carbs.records import Direction, Suggestion, as_whole_number
from carbs.search_space import Param, SearchSpace
from carbs.spaces import MixtureSpace, Params
from carbs.study.define_by_run import (
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
from carbs.study.flat import distributions, flat_names, flatten
from carbs.study.listed import described, listed, unlisted
from carbs.study.trials import (
    FORGOTTEN,
    PREDICTED,
    SAMPLING_S,
    Records,
    direction_of,
    kept_trials,
    records,
    records_of,
)

_ONE_AT_A_TIME = threading.Lock()  # of threads, the second is to know what the first will try


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
    is learnt from the trials (:mod:`carbs.study.define_by_run`), those of other samplers included.

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
        ValueError: constraints without a list, a limit that is not positive, a seed that is no
            whole number, or what :class:`carbs.SearchSpace` refuses. While
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
        check_limit("max_cost", max_cost)
        self.max_cost = max_cost
        self.allowance = Allowance(n_trials, budget)
        self.cost = cost
        self.cost_exponent = cost_exponent
        self.earlier = tuple(earlier)
        self.seed = as_whole_number("seed", seed)
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
            direction = direction_of(study)
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
        started, direction = time.monotonic(), direction_of(study)
        with _ONE_AT_A_TIME:
            others = [other for other in kept_trials(study) if other.number != trial.number]
            inferred = DefineByRunSpace(search_space, others)
            if inferred.space is None:
                return inferred.values({})
            known = records_of(
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
