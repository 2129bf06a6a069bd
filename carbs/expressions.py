"""Expressions over the parameters, as users write them.

An expression knows the parameters by their names, numbers, strings, tuples and lists, the operators
of Python, a component of a mixture as ``mix.code`` or ``mix['code']``, and the functions in
``_FUNCTIONS``; it cannot reach anything else.
"""

from __future__ import annotations

import ast
import math
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from simpleeval import DEFAULT_OPERATORS, EvalWithCompoundTypes, InvalidExpression

_NODES = (
    *(ast.BinOp, ast.BoolOp, ast.Compare, ast.Constant, ast.IfExp),
    *(ast.List, ast.Name, ast.Subscript, ast.Tuple, ast.UnaryOp),
)
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "log": math.log,
    "log10": math.log10,
    "max": max,
    "min": min,
    "round": round,
    "sqrt": math.sqrt,
}
_ARRAY_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "log": np.log,
    "log10": np.log10,
    "max": lambda *values: np.max(np.broadcast_arrays(*values), axis=0),
    "min": lambda *values: np.min(np.broadcast_arrays(*values), axis=0),
    "round": np.round,
    "sqrt": np.sqrt,
}


def _evaluator(power: Any, functions: dict[str, Any], **operators: Any) -> EvalWithCompoundTypes:
    """simpleeval's own power refuses bases above four million, which token counts are."""
    others = {getattr(ast, name): operator for name, operator in operators.items()}
    found = EvalWithCompoundTypes(operators={**DEFAULT_OPERATORS, ast.Pow: power, **others})
    found.functions = functions
    found.nodes = {kind: found.nodes[kind] for kind in (*_NODES, ast.Call)}
    return found


_SCALARS = _evaluator(math.pow, _FUNCTIONS)
_ARRAYS = _evaluator(np.float_power, _ARRAY_FUNCTIONS, Add=np.add, Mult=np.multiply)
_ONE_AT_A_TIME = threading.Lock()  # Optuna asks its samplers in threads


class EvaluationError(ValueError):
    """An expression whose values do not fit together."""


class Expression:
    """An expression over the parameters.

    Args:
        text: of the expression.
        examples: a value of every parameter.
        kind: what it is for, in errors.

    Raises:
        ValueError: quotes the text and says what is wrong with it.

    Attributes:
        names: of the parameters in it.
    """

    def __init__(self, text: str, examples: Mapping[str, Any], kind: str) -> None:
        self.saved, self._kind = text, kind
        try:
            self._tree = _Dotted(examples).visit(ast.parse(text.strip(), mode="eval").body)
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{self} is no expression: {error}") from None
        self.names = self._parameter_names(set(examples))

    def __str__(self) -> str:
        return f"{self._kind} {self.saved!r}"

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

    def value(self, params: Mapping[str, Any]) -> Any:
        """At a configuration that has all the names.

        Raises:
            ArithmeticError: there is none, as in a division by zero.
            ValueError: as that, for a logarithm; or values that do not fit together.
        """
        return self._evaluated(_SCALARS, params)

    def values(self, columns: Mapping[str, Any]) -> Any:
        """At many configurations: an array for each name, or for each component of a mixture.

        Raises:
            ValueError: what cannot be said of many at once: ``and``, ``or``, ``if``.
        """
        try:
            with np.errstate(all="ignore"):
                return self._evaluated(_ARRAYS, columns)
        except EvaluationError:
            raise
        except ValueError:
            raise ValueError(
                f"{self} is asked of many configurations at once: write it without 'and', 'or' and "
                "'if', such as (kind == 'a') * x + (kind != 'a') * y"
            ) from None

    def _evaluated(self, evaluator: EvalWithCompoundTypes, names: Mapping[str, Any]) -> Any:
        try:
            with _ONE_AT_A_TIME:
                evaluator.names = dict(names)
                return evaluator.eval(self.saved, self._tree)
        except (InvalidExpression, TypeError, LookupError) as error:
            raise EvaluationError(
                f"{self} cannot be evaluated at {dict(names)}: {type(error).__name__}: {error}"
            ) from None


class _Dotted(ast.NodeTransformer):
    """Reads ``model.width`` as one name, and ``mix.code`` as a component, where there are such."""

    def __init__(self, examples: Mapping[str, Any]) -> None:
        self._examples = examples

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        name = ast.unparse(node)
        if name in self._examples:
            return ast.Name(name, ast.Load())
        whole = ast.unparse(node.value)
        if isinstance(self._examples.get(whole), Mapping):
            return ast.Subscript(ast.Name(whole, ast.Load()), ast.Constant(node.attr), ast.Load())
        return node
