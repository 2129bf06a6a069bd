"""An Optuna study as the record of a search: its trials are our records, and back.

A study of ours has two objectives, (output, cost). Each parameter is an Optuna parameter of the
same name; a mixture is one for each component, ``mix.code``. A parameter that is inactive in a
trial is not stored with it. What Optuna has no place for lies in trial attributes: what was
predicted when a trial was suggested (``predicted``), why it failed (``failure``), its learning
curve (``curve``, rows of progress, output and cost), and where it was stopped early, the forecast
of its end and what it spent (``stopped``). Where the cost of a trial was corrected for the speed of
its machine, ``spent`` is what was measured. A failed trial marked ``forgotten`` was the machine's
fault and teaches nothing; nor do those whose numbers the study's attribute ``dropped`` lists. Its
attribute ``earlier_values`` has what trials used that lack a parameter which was added later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from carbs.allowance import Allowance
from carbs.constraints import Constraint
from carbs.earlier import EarlierRuns, EarlierSweep
from carbs.early_stopping import (
    MIN_PROGRESS,
    MISS_SHARE,
    FinishedRun,
    forecast,
    is_off_front,
)
from carbs.records import Direction, Failure, Observation, Suggestion
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


def records(trials: Sequence[FrozenTrial], space: SearchSpace) -> Records:
    """Read a study's trials, in the order of their numbers.

    Trials without some active parameter of the space and forgotten ones are left out, and so are
    pruned ones without a forecast of their end. A trial with one objective costs 1.

    Raises:
        ValueError: a completed trial has a cost that is not positive.
    """
    return _records(trials, lambda flat: unflatten(space, flat))


def earlier_sweep(study: Study, defaults: Mapping[str, Any] | None = None) -> EarlierSweep:
    """A study's ended trials, over whatever parameters they have, as data for a new search.

    Trials that were stopped early count as their forecasts, pruned ones without a forecast do not.

    Args:
        study: with the objectives (output, cost), or with one: then every trial cost 1.
        defaults: what it used of parameters that it did not search.

    Raises:
        ValueError: the study's objectives are others, or a completed trial has a cost that is not
            positive.
    """
    found = _records(kept_trials(study), _nested)
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


def _nested(flat: Mapping[str, Any]) -> Params | None:
    """A trial's parameters with mixtures as mappings; None where the trial has none at all."""
    params: Params = {}
    for key, value in flat.items():
        name, dot, component = key.partition(".")
        if dot:
            params[name] = {**params.get(name, {}), component: value}  # type: ignore[dict-item]
        else:
            params[name] = value
    return params or None


def _records(
    trials: Sequence[FrozenTrial], read: Callable[[Mapping[str, Any]], Params | None]
) -> Records:
    found = Records([], [], [])
    for trial in trials:
        params = read(trial.params)
        if params is None or trial.user_attrs.get(FORGOTTEN):
            continue
        id = str(trial.number)
        if trial.state == TrialState.COMPLETE:
            output, cost = (*trial.values, 1.0)[:2]
            if not 0 < cost < float("inf"):
                raise ValueError(
                    f"trial {trial.number} has cost {cost}, expected a positive, finite number"
                )
            if abs(output) == float("inf"):
                reason = f"output is {output}"
                found.failures.append(Failure(params=params, reason=reason, cost=cost, id=id))
            else:
                spent = trial.user_attrs.get(SPENT)
                found.observations.append(
                    Observation(params=params, output=output, cost=cost, id=id, spent=spent)
                )
        elif trial.state == TrialState.PRUNED and STOPPED in trial.user_attrs:
            stopped = trial.user_attrs[STOPPED]
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
    return found


def tell_failure(study: Study, number: int, reason: str, cost: float | None = None) -> None:
    """End a trial as a failure of its configuration, with its reason and what it spent.

    Raises:
        ValueError: the cost is negative or not finite.
    """
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
    """CARBS as an Optuna sampler, for studies with the objectives (output, cost).

    ``study.ask()`` gives a trial that already has every active parameter, in ``trial.params``.
    Parameters that the sampler was not told of are drawn at random. In a study with one objective
    every trial counts as equally costly.

    Args:
        params: what is searched.
        constraints: what every suggestion meets (see :mod:`carbs.constraints`); enqueued values
            may violate them.
        max_cost: of one run; None for no limit.
        n_trials, budget: how many trials there will be, and what all of them together may cost, as
            far as that is known.
        cost_exponent: from 0 (only the number of trials matters) to 1 (only their total cost); by
            default as these limits have it, and without any first 1, then ever less.
        earlier: other sweeps to learn from (see :mod:`carbs.earlier`).
        seed: same trials and seed, same suggestion.
    """

    def __init__(
        self,
        params: Sequence[Param],
        *,
        constraints: Iterable[Constraint] = (),
        max_cost: float | None = None,
        n_trials: int | None = None,
        budget: float | None = None,
        cost_exponent: float | None = None,
        earlier: Sequence[EarlierSweep] = (),
        seed: int = 0,
    ) -> None:
        self.space = SearchSpace(params, constraints)
        self.max_cost = max_cost
        self.allowance = Allowance(n_trials, budget)
        self.cost_exponent = cost_exponent
        self.earlier = tuple(earlier)
        self.seed = seed
        self._seen: dict[Direction, list[EarlierRuns]] = {}
        self._distributions = distributions(self.space)
        self._independent = RandomSampler(seed=seed)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Store a suggestion's parameters with the trial, so that it is complete at once."""
        fixed = trial.system_attrs.get("fixed_params", {})
        suggestion = self._suggest(study, trial.number)
        flat = self._with_fixed(suggestion.params, fixed)
        for name, value in flat.items():
            distribution = self._distributions[name]
            study._storage.set_trial_param(
                trial._trial_id, name, distribution.to_internal_repr(value), distribution
            )
            trial.params[name] = value
            trial.distributions[name] = distribution
        if not set(fixed) & set(flat):
            predicted = suggestion.model_dump(mode="json", exclude={"id", "params"})
            study._storage.set_trial_user_attr(trial._trial_id, PREDICTED, predicted)
            trial.user_attrs[PREDICTED] = predicted

    def _with_fixed(self, suggested: Params, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """Enqueued values in place of suggested ones; the rest of a mixture shares what is left.

        A parameter that becomes active by an enqueued value starts at its centre.
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
                shared = sum(merged[name] for name in free)
                for name in free:
                    share = merged[name] / shared if shared > 0 else 1 / len(free)
                    merged[name] = max(left, 0.0) * share
            kept |= {name: merged[name] for name in names}
        return kept

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        self._independent.reseed_rng()

    def _suggest(self, study: Study, number: int) -> Suggestion:
        others = [trial for trial in kept_trials(study) if trial.number != number]
        return self.suggest(records(others, self.space), number, _direction(study))

    def suggest(self, known: Records, number: int, direction: Direction) -> Suggestion:
        """What the trial of this number is to try, by these records."""
        from carbs.optimizer import propose, seen_from  # slow, and a look at a study needs neither

        if direction not in self._seen:
            self._seen[direction] = seen_from(self.space, self.earlier, direction)
        return propose(
            self.space,
            known.observations,
            known.failures,
            [suggestion.params for suggestion in known.pending],
            [str(number)],
            earlier=self._seen[direction],
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
