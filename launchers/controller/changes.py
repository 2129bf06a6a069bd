"""A sweep file that has changed since its sweep began: what was run is kept, and read anew.

    other bounds, scales, centres   what lies outside is data like any other
    a parameter more                earlier runs had the value that the file says, ``was: 0.1``
    one that is searched no longer  ``fixed: 0.1``; earlier runs keep their own values
    a mixture's component more      had the weight zero
    one less                        what gave it any weight cannot be read, and is left out

So may what is run, and the data under it where a run records their versions: another is told. Not
the unit of cost, which would give old costs another meaning.

Optuna keeps one list of choices and one kind of scale for each name. Where these change, or where
nobody says what earlier runs used, the study cannot hold both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import check_distribution_compatibility
from optuna.trial import FrozenTrial, TrialState

from carbs.launchers.controller.config import SweepConfig
from carbs.search_space import Param, SearchSpace
from carbs.spaces import MixtureSpace
from carbs.study import FORGOTTEN, distributions, flat_names, flatten, unflatten


def changes(before: Sequence[Param], after: Sequence[Param]) -> list[str]:
    """What is different, a line for each parameter; nothing that only plans take notice of."""
    old, new = ({param.name: param for param in params} for params in (before, after))
    lines = [f"{name} is new" for name in new if name not in old]
    lines += [f"{name} is gone" for name in old if name not in new]
    for name, param in new.items():
        if name in old and _searched(old[name]) != _searched(param):
            was, now = _fields(old[name]), _fields(param)
            differ = [key for key in now if was.get(key) != now[key]]
            lines.append(
                f"{name}: " + ", ".join(f"{key} {was.get(key)} -> {now[key]}" for key in differ)
            )
    return lines


def changes_of_runs(before: SweepConfig, after: SweepConfig) -> list[str]:
    """What trials run otherwise than before, a line for each key of the sweep file."""
    was, now = (
        config.model_dump(mode="json", include={"function", "command", "shell", "output_unit"})
        | {f"settings.{key}": value for key, value in _settings(config).items()}
        for config in (before, after)
    )
    return [
        f"{key}: {_shown(was.get(key))} -> {_shown(now.get(key))}"
        for key in {**was, **now}
        if was.get(key) != now.get(key)
    ]


def earlier_values(
    before: Sequence[Param], after: Sequence[Param], was: Mapping[str, Any]
) -> dict[str, Any]:
    """What earlier runs used of parameters that they did not have, by flat name.

    Args:
        before: what was searched until now.
        after: what is to be searched.
        was: by parameter, as the sweep file says it.

    Raises:
        ValueError: a line for each parameter that the study cannot hold both ways.
    """
    old, new = ({param.name: param for param in params} for params in (before, after))
    problems = [
        f"{name} is gone: leave it in and say fixed: VALUE, what later runs are to use"
        for name in old
        if name not in new
    ]
    values: dict[str, Any] = {}
    for name, param in new.items():
        if name not in old:
            if name in was:
                values |= flatten({name: was[name]})
            else:
                problems.append(f"{name} is new: say was: VALUE, what earlier runs used")
            continue
        problem = _incompatibility(old[name], param)
        if problem is not None:
            problems.append(f"{name}: {problem}")
        elif isinstance(param.space, MixtureSpace):
            added = set(flat_names(param)) - set(flat_names(old[name]))
            values |= dict.fromkeys(sorted(added), 0.0)
    if problems:
        raise ValueError("\n".join(f"  {problem}" for problem in problems))
    return values


def left_out(trials: Sequence[FrozenTrial], space: SearchSpace) -> Counter[str]:
    """Ended trials that cannot be read in a space, by the reason."""
    reasons: Counter[str] = Counter()
    for trial in trials:
        if not trial.state.is_finished() or FORGOTTEN in trial.user_attrs:
            continue
        if unflatten(space, trial.params) is None and trial.state != TrialState.WAITING:
            reasons[_why_unreadable(trial.params, space)] += 1
    return reasons


def data_versions(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Of a run's metrics the versions of its data by component: ``data.NAME.version``, if any."""
    data = metrics.get("data")
    if not isinstance(data, Mapping):
        return {}
    return {
        str(name): str(facts["version"])
        for name, facts in data.items()
        if isinstance(facts, Mapping) and "version" in facts
    }


def changed_data(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """A line for each component of which there is another version now."""
    return [
        f"the data of {name!r} are others: version {before[name]} -> {version}; outputs before and "
        "after do not compare"
        for name, version in after.items()
        if before.get(name, version) != version
    ]


def _why_unreadable(flat: Mapping[str, Any], space: SearchSpace) -> str:
    active = space.active_names(flat)
    for param in space.params:
        if param.name not in active:
            continue
        missing = [name for name in flat_names(param) if name not in flat]
        if missing:
            return f"they have no {missing[0]}"
        known = flat_names(param)
        for name in flat:
            if name.startswith(f"{param.name}.") and name not in known and flat[name]:
                return f"they gave weight to {name}"
    return "they lack a parameter"


def _incompatibility(old: Param, new: Param) -> str | None:
    was, now = (
        next(iter(distributions(SearchSpace([param.model_copy(update={"when": {}})])).values()))
        for param in (old, new)
    )
    if isinstance(old.space, MixtureSpace) != isinstance(new.space, MixtureSpace):
        return "a mixture stays one"
    try:
        check_distribution_compatibility(was, now)
    except ValueError:
        kinds = {old.space.kind, new.space.kind}
        return "choices cannot change" if kinds == {"choice"} else "its scale or kind cannot change"
    return None


def _settings(config: SweepConfig) -> dict[str, Any]:
    settings: dict[str, Any] = config.model_dump(mode="json")["settings"]
    return settings


def _shown(value: Any) -> str:
    return "none" if value in (None, "") else str(value)


def _searched(param: Param) -> Param:
    return param.model_copy(update={"role": None})


def _fields(param: Param) -> dict[str, Any]:
    dumped = param.model_dump(mode="json")
    space = {"space" if key == "kind" else key: value for key, value in dumped["space"].items()}
    return space | {key: dumped[key] for key in ("search_center", "when")}
