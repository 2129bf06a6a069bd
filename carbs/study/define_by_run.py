"""The search space of a study whose trials ask for their parameters as they go.

Nobody lists the parameters there: an objective calls ``trial.suggest_float("lr", 1e-5, 1e-1)``, and
what is searched is read from the trials so far. Of each parameter

    its range    is the one that the latest trial asked for; a value that an earlier trial had
                 beyond it is data like any other
    its scale    is logarithmic where the range is, linear else; a step of the search is a quarter
                 of the range
    its centre   is what the study's first trial was enqueued with, else the middle of the range and
                 the first of the choices
    it exists    where the choices have it so: if no trial with ``optimizer="adam"`` asked for a
                 momentum, and others did, it exists only beside the others. What depends on
                 anything but choices (``for i in range(n_layers)``) always exists for the search,
                 and has its centre's value in trials without it

A name that none of the last ``_N_RECENT`` trials asked for, with no choice to explain it, has gone
from the objective and from the search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState
from pydantic import Field

from carbs.search_space import Param, SearchSpace
from carbs.spaces import ChoiceSpace, FloatArray, LinearSpace, LogSpace, Params, Scalar, Value
from carbs.study.trials import kept_trials

# Attributes of a trial: what was suggested for it, and what it was enqueued with.
SUGGESTED = "carbs:suggested"
ENQUEUED = "carbs:enqueued"

_N_RECENT = 10
# Lists of parameters may leave bounds out, and Optuna is told of these (:mod:`carbs.study`).
_NO_BOUND, _LEAST = 2.0**53, 1e-300


def asked(trials: Sequence[FrozenTrial]) -> dict[str, BaseDistribution]:
    """What trials ask for, by name, of several ranges the latest; constants are left out."""
    found: dict[str, BaseDistribution] = {}
    for trial in trials:
        found.update({n: d for n, d in trial.distributions.items() if not d.single()})
    recent = _ran_whole(trials)[-_N_RECENT:]
    gone = {
        name
        for name, when in _conditions(found, trials).items()
        if when is None and not any(name in trial.params for trial in recent)
    }
    return {name: found[name] for name in sorted(found) if name not in gone}


class DefineByRunSpace:
    """The parameters that a trial is expected to ask for, as a :class:`SearchSpace` and back.

    Args:
        search_space: what is asked for, by name.
        trials: of the study, by which conditions and the centre are known.

    Attributes:
        space: over the same parameters.
    """

    def __init__(
        self, search_space: Mapping[str, BaseDistribution], trials: Sequence[FrozenTrial]
    ) -> None:
        start = enqueued(trials[0]) if trials else {}
        conditions = _conditions(search_space, trials)
        self._asked = {
            name: _Asked.of(distribution)
            for name, distribution in search_space.items()
            if not distribution.single()
        }
        self._constants = {
            name: middle(distribution)
            for name, distribution in search_space.items()
            if distribution.single()
        }
        self._may_lack = {name for name, when in conditions.items() if when is None}
        self.space: SearchSpace | None = None
        if not self._asked:
            return
        params = []
        for name, one in self._asked.items():
            center = start.get(name)
            if center is None or not contains(one.distribution, center):
                center = middle(one.distribution)
            when: dict[str, Any] = {
                parent: [self._asked[parent].value(choice) for choice in choices]
                for parent, choices in (conditions[name] or {}).items()
            }
            params.append(Param(name, one.space, one.value(center), when))
        self.space = SearchSpace(params)

    @property
    def is_own(self) -> str:
        """Why the space is not the one that a list of parameters would make; empty if it is."""
        shares = sorted(
            name
            for name, one in self._asked.items()
            if "." in name and one.distribution == FloatDistribution(0.0, 1.0)
        )
        labelled = sorted(
            name
            for name, one in self._asked.items()
            if isinstance(one.distribution, CategoricalDistribution)
            and one.labels != one.distribution.choices
        )
        unbounded = sorted(
            name
            for name, one in self._asked.items()
            if not isinstance(one.space, ChoiceSpace)
            and (max(abs(one.space.min), one.space.max) >= _NO_BOUND or 0 < one.space.min <= _LEAST)
        )
        reasons = {
            "ranges that stand for none": unbounded,
            "what may be shares of a mixture": shares if len(shares) > 1 else [],
            "choices that are no plain values": labelled,
            "parameters that exist for other reasons than choices": sorted(self._may_lack),
        }
        return "; ".join(f"{reason}: {names}" for reason, names in reasons.items() if names)

    def read(self, flat: Mapping[str, Any]) -> Params | None:
        """A trial's configuration in the space; None where it lacks what it must have."""
        assert self.space is not None
        try:
            known = {
                name: one.value(flat[name]) for name, one in self._asked.items() if name in flat
            }
        except ValueError:  # a choice that is gone
            return None
        params: Params = {}
        active = self.space.active_names(known)
        for param in self.space.params:
            if param.name not in active:
                continue
            if param.name not in known and param.name not in self._may_lack:
                return None
            params[param.name] = known.get(param.name, param.search_center)
        return params

    def read_pending(self, trial: FrozenTrial) -> Params | None:
        """What a running trial has asked for, and what it will get for the rest."""
        return self.read({**trial.system_attrs.get(SUGGESTED, {}), **trial.params})

    def values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration of the space as the trial knows it."""
        found = dict(self._constants)
        for name, one in self._asked.items():
            if name in params:
                found[name] = one.external(params[name])
        return found


def inferred_space(study: Study) -> SearchSpace:
    """What the trials of a study have asked for.

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


@dataclass(frozen=True)
class _Asked:
    """One parameter in both worlds."""

    distribution: BaseDistribution
    space: LinearSpace | LogSpace | ChoiceSpace
    labels: tuple[Scalar, ...] = ()

    @classmethod
    def of(cls, distribution: BaseDistribution) -> _Asked:
        if isinstance(distribution, CategoricalDistribution):
            labels = _labels(distribution)
            return cls(distribution, ChoiceSpace(labels), labels)
        return cls(distribution, _space(distribution))

    def value(self, external: Any) -> Value:
        """Of the space.

        Raises:
            ValueError: it is none of the choices.
        """
        if isinstance(self.distribution, CategoricalDistribution):
            return self.labels[int(self.distribution.to_internal_repr(external))]
        number: Value = external
        return number

    def external(self, value: Any) -> Any:
        """As a trial gets it."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            assert isinstance(self.space, ChoiceSpace)
            return distribution.choices[self.space.index(value)]
        return nearest(distribution, value)


def _labels(distribution: CategoricalDistribution) -> tuple[Scalar, ...]:
    """The choices themselves where they are told apart by ``==``, else what stands for them."""
    choices = distribution.choices
    plain = [isinstance(c, (bool, int, float, str)) and c == c for c in choices]
    if all(plain) and len({(isinstance(c, bool), c) for c in choices}) == len(choices):
        return tuple(choices)  # type: ignore[arg-type]  # looked at above
    return tuple(f"{i}: {choice!r}" for i, choice in enumerate(choices))


def _space(distribution: BaseDistribution) -> LinearSpace | LogSpace:
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high, step = distribution.low, distribution.high, distribution.step
    is_integer = isinstance(distribution, IntDistribution)
    if distribution.log:
        return LogSpace(min=low, max=high, is_integer=is_integer)
    if step is None or (is_integer and step == 1):
        return LinearSpace(min=low, max=high, is_integer=is_integer)
    return _SteppedSpace(min=low, max=high, step=step)


class _SteppedSpace(LinearSpace):
    """The numbers ``min``, ``min + step``, ``min + 2 step``, ... up to ``max``."""

    kind: Literal["linear"] = "linear"
    step: float = Field(gt=0)

    @property
    def _step(self) -> float:
        return self.step

    def _round(self, x: FloatArray) -> FloatArray:
        n = math.floor((self.max - self.min) / self.step + 1e-8)
        k = np.clip(np.round((x - self.min) / self.step), 0, n)
        return np.asarray(self.min + k * self.step)

    def all_values(self, n_most: int) -> list[Value] | None:
        n = math.floor((self.max - self.min) / self.step + 1e-8) + 1
        return None if n > n_most else [self.min + k * self.step for k in range(n)]


def nearest(distribution: BaseDistribution, value: Any) -> Any:
    """The value of a range that is nearest to a number, in its plain type."""
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high, step = distribution.low, distribution.high, distribution.step
    number = min(max(float(value), low), high)
    if step is not None:
        number = min(low + round((number - low) / step) * step, high)
    return round(number) if isinstance(distribution, IntDistribution) else float(number)


def middle(distribution: BaseDistribution) -> Any:
    """The middle of a range on its scale; the first choice."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[0]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        return nearest(distribution, math.exp((math.log(low) + math.log(high)) / 2))
    return nearest(distribution, low / 2 + high / 2)


def draw(distribution: BaseDistribution, rng: np.random.Generator) -> Any:
    """A value at random, evenly over the range on its scale."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(rng.integers(len(distribution.choices)))]
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = float(distribution.low), float(distribution.high)
    half = (distribution.step or 0) / 2  # each step is as likely
    share = rng.random()
    if distribution.log:
        half = 0.5 if isinstance(distribution, IntDistribution) else 0.0
        low, high = math.log(low - half), math.log(high + half)
        return nearest(distribution, math.exp(low + share * (high - low)))
    low, high = low - half, high + half
    return nearest(distribution, low * (1 - share) + high * share)


def contains(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a trial that asks so may have this value."""
    try:
        return distribution._contains(distribution.to_internal_repr(value))
    except (ValueError, TypeError):
        return False


def enqueued(trial: FrozenTrial) -> dict[str, Any]:
    """What a trial was enqueued with."""
    attributes = trial.system_attrs
    return dict(attributes.get(ENQUEUED) or attributes.get("fixed_params") or {})


def _ran_whole(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Trials that asked for all that they would ask for, as far as one can know."""
    ends = (TrialState.COMPLETE, TrialState.PRUNED)
    return [trial for trial in trials if trial.state in ends and trial.params]


def _conditions(
    search_space: Mapping[str, BaseDistribution], trials: Sequence[FrozenTrial]
) -> dict[str, dict[str, list[Any]] | None]:
    """Beside which choices each parameter exists; None where no choices tell.

    Choices that exclude the most of the trials without the parameter count first. One that was not
    seen without it is taken to have it: what is suggested in vain is not asked for, and no harm.
    """
    trials = _ran_whole(trials)
    choices = {
        name: distribution
        for name, distribution in search_space.items()
        if isinstance(distribution, CategoricalDistribution) and not distribution.single()
    }
    found: dict[str, dict[str, list[Any]] | None] = {}
    for name in search_space:
        present = [trial for trial in trials if name in trial.params]
        absent = [trial for trial in trials if name not in trial.params]
        parents = [
            parent
            for parent in sorted(choices)
            if present and parent != name and all(parent in trial.params for trial in present)
        ]
        when: dict[str, list[Any]] = {}
        while absent and present:
            excluded = {
                parent: {
                    i
                    for i, choice in enumerate(choices[parent].choices)
                    if _has(absent, parent, choice) and not _has(present, parent, choice)
                }
                for parent in parents
            }
            left = {
                parent: [
                    trial
                    for trial in absent
                    if not any(_has([trial], parent, choices[parent].choices[i]) for i in out)
                ]
                for parent, out in excluded.items()
            }
            best = min(parents, key=lambda parent: len(left[parent]), default=None)
            if best is None or len(left[best]) == len(absent):
                break
            when[best] = [c for i, c in enumerate(choices[best].choices) if i not in excluded[best]]
            absent = left[best]
        # Of a name that no trial had from beginning to end, nothing is known.
        found[name] = None if absent else when
    return found


def _has(trials: Sequence[FrozenTrial], name: str, choice: Any) -> bool:
    return any(
        name in trial.params
        and trial.params[name] == choice
        and type(trial.params[name]) is type(choice)
        for trial in trials
    )
