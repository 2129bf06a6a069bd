"""Configurations as Optuna stores them: one entry a number, mixtures by component."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from carbs.search_space import Param, SearchSpace
from carbs.spaces import ChoiceSpace, LogSpace, MixtureSpace, Params, Space

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
