"""What a trial asks for, held against the list of parameters that the sampler was given.

A trial of :class:`carbs.study.CarbsSampler` with a list has its parameters before it begins. Where
its objective then asks for them by ``trial.suggest_float`` and its like, Optuna compares the range
that is asked for with the one that the trial has, warns of some differences, and goes on. Here the
distribution that the trial has notices the comparison, and refuses.
"""

from __future__ import annotations

import copy
from abc import ABCMeta
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, NoReturn, Self

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from carbs.search_space import Param


def listed(
    name: str, param: Param, distribution: BaseDistribution, refuse: Callable[[str], NoReturn]
) -> BaseDistribution:
    """A trial's distribution, which calls ``refuse`` when another is asked for by its name."""

    def misfit(asked: str) -> NoReturn:
        refuse(
            f"the trial asks for {name!r} {asked}, but the list of parameters says "
            f"{param.space!r}, which is {described(distribution)}: let both say the same, or use "
            "CarbsSampler() without a list, which searches what the trials ask for"
        )

    def compare(asked: object) -> None:
        if isinstance(asked, type) and asked is not type(distribution):
            misfit(f"by {_CALLS[asked]}")
        elif isinstance(asked, BaseDistribution) and asked != distribution:
            misfit(f"as {described(asked)}")

    def refuse_scale(is_log: bool) -> NoReturn:
        misfit(f"with log={is_log}")

    def is_equal(self: BaseDistribution, asked: object) -> bool:
        compare(asked)
        return True

    def copied(self: BaseDistribution, memo: dict[int, Any]) -> BaseDistribution:
        return copy.deepcopy(distribution, memo)  # who asks a trial for them gets plain ones

    kind: Any = _Comparing(
        type(distribution).__name__,
        (type(distribution),),
        {"__eq__": is_equal, "__hash__": None, "__deepcopy__": copied, "compare": compare},
    )
    refusing: BaseDistribution = object.__new__(kind)
    refusing.__dict__.update(distribution.__dict__)
    if isinstance(distribution, (FloatDistribution, IntDistribution)):
        refusing.__dict__["log"] = _Log.of(distribution.log, refuse_scale)
    return refusing


class _Comparing(ABCMeta):
    """Of a distribution: Optuna first compares the class of what a trial has with the other's."""

    compare: Callable[[object], None]

    def __ne__(cls, asked: object) -> bool:
        cls.compare(asked)
        return False

    __hash__ = ABCMeta.__hash__


class _Log(int):
    """Of a distribution, whether it is logarithmic: Optuna compares that next."""

    refuse: Callable[[bool], NoReturn]

    @classmethod
    def of(cls, is_log: bool, refuse: Callable[[bool], NoReturn]) -> Self:
        log = cls(is_log)
        log.refuse = refuse
        return log

    def __ne__(self, asked: object) -> bool:
        if bool(self) != asked:
            self.refuse(bool(asked))
        return False

    __hash__ = int.__hash__


def unlisted(name: str, asked: BaseDistribution, names: Mapping[str, Any]) -> str:
    """What is wrong with asking for a name that is not in the list."""
    close = get_close_matches(name, list(names), n=1)
    hint = f"did you mean {close[0]!r}? Else add" if close else "add"
    return (
        f"the trial asks for {name!r} ({described(asked)}), but the list of parameters has only "
        f"{sorted(names)}: {hint} it to the list, or use CarbsSampler() without a list, which "
        "searches what the trials ask for"
    )


def described(distribution: BaseDistribution) -> str:
    """How a trial would ask for it."""
    call = _CALLS[type(distribution)]
    if isinstance(distribution, CategoricalDistribution):
        return f"{call}({list(distribution.choices)})"
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    low, high = (f"{x:.10g}" if isinstance(x, float) else str(x) for x in _ends(distribution))
    is_plain = distribution.step is None or (call == "suggest_int" and distribution.step == 1)
    step = "" if is_plain else f", step={distribution.step}"
    return f"{call}({low}, {high}{step}{', log=True' if distribution.log else ''})"


def _ends(distribution: FloatDistribution | IntDistribution) -> tuple[float, float]:
    return distribution.low, distribution.high


_CALLS: dict[type, str] = {
    FloatDistribution: "suggest_float",
    IntDistribution: "suggest_int",
    CategoricalDistribution: "suggest_categorical",
}
