"""Constraints: conditions that every suggestion meets.

A constraint is an expression over the parameters (:mod:`carbs.expressions`), such as
``"width % heads == 0"``, or a function from a configuration to a truth value. An expression that
names a parameter which a configuration does not have, because it is inactive there, is satisfied;
one whose arithmetic has no answer, as in a division by zero, is violated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from carbs.expressions import EvaluationError, Expression

Constraint = str | Callable[[dict[str, Any]], bool]


class Condition(Expression):
    """An expression that holds, or does not.

    Args:
        text: of the expression.
        examples: a value of every parameter, at which the expression is tried.

    Raises:
        ValueError: quotes the text and says what is wrong with it.
    """

    def __init__(self, text: str, examples: Mapping[str, Any]) -> None:
        super().__init__(text, examples, "constraint")
        self.holds(examples)

    def holds(self, params: Mapping[str, Any]) -> bool:
        if not self.names <= set(params):
            return True
        try:
            return bool(self.value(params))
        except EvaluationError:
            raise
        except (ArithmeticError, ValueError):
            return False


class Function:
    """A function from a configuration to whether it is allowed."""

    def __init__(self, function: Callable[[dict[str, Any]], bool]) -> None:
        self._function = function
        self._name = getattr(function, "__name__", type(function).__name__)
        self.saved: dict[Literal["function"], str] = {"function": self._name}

    def __str__(self) -> str:
        return f"constraint {self._name}"

    def holds(self, params: Mapping[str, Any]) -> bool:
        try:
            return bool(self._function(dict(params)))
        except Exception as error:
            raise ValueError(
                f"{self} raised {type(error).__name__}: {error}, at {dict(params)}: it must give "
                "True or False for every configuration, without its inactive parameters"
            ) from error


def as_tuple(constraints: Iterable[Any] | Constraint) -> tuple[Any, ...]:
    """Several constraints, or the one that was given in place of a list."""
    if isinstance(constraints, str) or callable(constraints):
        return (constraints,)
    return tuple(constraints)


def as_predicate(
    constraint: Constraint | Condition | Function, examples: Mapping[str, Any]
) -> Condition | Function:
    """The constraint in a form that can be asked; one that is in it already stays.

    Args:
        constraint: as the user writes it.
        examples: a value of every parameter.

    Raises:
        ValueError: the constraint is no expression over the parameters, nor a function.
    """
    if isinstance(constraint, (Condition, Function)):
        return constraint
    if isinstance(constraint, str):
        return Condition(constraint, examples)
    if callable(constraint):
        return Function(constraint)
    raise ValueError(f"constraint {constraint!r} is neither an expression nor a function")
