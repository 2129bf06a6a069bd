"""Constraints: conditions that every suggestion meets.

A constraint is an expression over the parameters, such as ``"width % heads == 0"``, or a function
from a configuration to a truth value.

An expression knows the parameters by their names, numbers, strings, tuples and lists, the operators
of Python, a component of a mixture as ``mix['code']``, and the functions in ``_FUNCTIONS``; it
cannot reach anything else. One that names a parameter which a configuration does not have, because
it is inactive there, is satisfied; one whose arithmetic has no answer, as in a division by zero, is
violated.
"""

from __future__ import annotations

import ast
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from simpleeval import DEFAULT_OPERATORS, EvalWithCompoundTypes, InvalidExpression

Constraint = str | Callable[[dict[str, Any]], bool]

_FUNCTIONS = {
    "abs": abs,
    "log": math.log,
    "log10": math.log10,
    "max": max,
    "min": min,
    "round": round,
    "sqrt": math.sqrt,
}
# simpleeval's power refuses bases above four million, which token counts are.
_OPERATORS = {**DEFAULT_OPERATORS, ast.Pow: math.pow}
_NODES = (
    *(ast.BinOp, ast.BoolOp, ast.Compare, ast.Constant, ast.IfExp),
    *(ast.List, ast.Name, ast.Subscript, ast.Tuple, ast.UnaryOp),
)
_EVALUATOR = EvalWithCompoundTypes(operators=_OPERATORS)
_EVALUATOR.functions = _FUNCTIONS
_EVALUATOR.nodes = {kind: _EVALUATOR.nodes[kind] for kind in (*_NODES, ast.Call)}
_ONE_AT_A_TIME = threading.Lock()  # Optuna asks its samplers in threads


class Expression:
    """An expression over the parameters.

    Args:
        text: of the expression.
        examples: a value of every parameter, at which the expression is tried.

    Raises:
        ValueError: quotes the text and says what is wrong with it.

    Attributes:
        names: of the parameters in it.
    """

    def __init__(self, text: str, examples: Mapping[str, Any]) -> None:
        self.saved = text
        try:
            self._tree = ast.parse(text.strip(), mode="eval").body
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{self} is no expression: {error}") from None
        self.names = self._parameter_names(set(examples))
        self.holds(examples)

    def __str__(self) -> str:
        return f"constraint {self.saved!r}"

    def _parameter_names(self, known: set[str]) -> set[str]:
        nodes = list(ast.walk(self._tree))
        for node in nodes:
            is_call_of_ours = isinstance(node, ast.Call) and ast.unparse(node.func) in _FUNCTIONS
            if isinstance(node, ast.expr) and not (is_call_of_ours or isinstance(node, _NODES)):
                raise ValueError(
                    f"{self} holds {ast.unparse(node)!r}, but an expression has only parameters, "
                    f"numbers, strings, operators and the functions {sorted(_FUNCTIONS)}"
                )
        called = [node.func for node in nodes if isinstance(node, ast.Call)]
        names = {node.id for node in nodes if isinstance(node, ast.Name) and node not in called}
        unknown = names - known
        if unknown or not names:
            what = f"names {sorted(unknown)}, no parameter" if unknown else "names no parameter"
            raise ValueError(f"{self} {what}; the parameters are {sorted(known)}")
        return names

    def holds(self, params: Mapping[str, Any]) -> bool:
        if not self.names <= set(params):
            return True
        try:
            with _ONE_AT_A_TIME:
                _EVALUATOR.names = dict(params)
                return bool(_EVALUATOR.eval(self.saved, self._tree))
        except (ArithmeticError, ValueError):
            return False
        except (InvalidExpression, TypeError, LookupError) as error:
            raise ValueError(
                f"{self} cannot be evaluated at {dict(params)}: {type(error).__name__}: {error}"
            ) from None


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
    constraint: Constraint | Expression | Function, examples: Mapping[str, Any]
) -> Expression | Function:
    """The constraint in a form that can be asked; one that is in it already stays.

    Args:
        constraint: as the user writes it.
        examples: a value of every parameter.

    Raises:
        ValueError: the constraint is no expression over the parameters, nor a function.
    """
    if isinstance(constraint, (Expression, Function)):
        return constraint
    if isinstance(constraint, str):
        return Expression(constraint, examples)
    if callable(constraint):
        return Function(constraint)
    raise ValueError(f"constraint {constraint!r} is neither an expression nor a function")
