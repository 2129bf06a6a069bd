"""What a constraint may say, and what it answers."""

from __future__ import annotations

import copy
import math
import threading
from typing import Any

import numpy as np
import pytest

from carbs import (
    CARBS,
    ChoiceSpace,
    LinearSpace,
    LogitSpace,
    LogSpace,
    MixtureSpace,
    Param,
    SearchSpace,
)
from carbs.study import CarbsSampler

PARAMS = [
    Param("width", LogSpace(min=16, is_integer=True, rounding_factor=16), 64),
    Param("heads", LinearSpace(min=0, max=16, is_integer=True), 4),
    Param("lr", LogSpace(), 1e-3),
    Param("tokens", LogSpace(is_integer=True), 10_000_000),
    Param("optimizer", ChoiceSpace(["adamw", "sgd"]), "adamw"),
    Param("momentum", LogitSpace(), 0.9, when={"optimizer": "sgd"}),
    Param("mix", MixtureSpace(["code", "prose"]), {"code": 0.5, "prose": 0.5}),
    Param("data.mix", MixtureSpace(["a", "b"]), {"a": 0.5, "b": 0.5}),
    Param("optimizer.eps", LogSpace(), 1e-8),
]
CENTER = SearchSpace(PARAMS).center_params


@pytest.mark.parametrize(
    ("expression", "changes", "is_allowed"),
    [
        ("width % heads == 0", {"heads": 5}, False),
        ("width % heads == 0", {"heads": 8}, True),
        ("width * heads <= 256", {"width": 80}, False),
        ("mix['code'] >= 0.1", {"mix": {"code": 0.05, "prose": 0.95}}, False),
        ("mix['code'] >= 0.1", {"mix": {"code": 0.2, "prose": 0.8}}, True),
        ("mix.code >= 0.1", {"mix": {"code": 0.05, "prose": 0.95}}, False),
        ("data.mix.a < mix.code + 0.1", {"data.mix": {"a": 0.7, "b": 0.3}}, False),
        ("optimizer.eps < 1e-6 and optimizer == 'adamw'", {"optimizer.eps": 1e-5}, False),
        ("optimizer.eps < 1e-6 and optimizer == 'adamw'", {"optimizer.eps": 1e-7}, True),
        ("optimizer == 'adamw' or lr < 1e-2", {"optimizer": "sgd", "lr": 0.1}, False),
        ("optimizer == 'adamw' or lr < 1e-2", {"optimizer": "sgd", "lr": 0.001}, True),
        ("optimizer in ('adamw', 'lion')", {"optimizer": "sgd"}, False),
        ("16 < width <= 64", {"width": 80}, False),
        ("not (heads == 2 and width == 16)", {"heads": 2, "width": 16}, False),
        ("sqrt(width) + abs(log10(lr)) < max(12, min(heads, 3))", {"lr": 1e-5}, False),
        ("(width if optimizer == 'sgd' else heads) < 32", {"optimizer": "sgd"}, False),
        ("tokens**2 <= 1e15", {"tokens": 100_000_000}, False),
        # What has no answer is not allowed.
        ("width / heads > 1", {"heads": 0}, False),
        ("log(heads) < 9", {"heads": 0}, False),
        # What names an inactive parameter does not apply.
        ("momentum < 0.95", {}, True),
        ("momentum < 0.95", {"optimizer": "sgd", "momentum": 0.99}, False),
        ("momentum < 0.95", {"optimizer": "sgd", "momentum": 0.9}, True),
    ],
)
def test_an_expression_is_about_a_configuration(
    expression: str, changes: dict[str, Any], is_allowed: bool
) -> None:
    space = SearchSpace(PARAMS, [expression])
    assert space.allows(CENTER)
    assert space.allows({**CENTER, **changes}) is is_allowed


def test_every_constraint_must_hold() -> None:
    space = SearchSpace(PARAMS, ["width <= 64", lambda params: params["heads"] != 5])
    assert space.allows(CENTER)
    assert not space.allows({**CENTER, "width": 80})
    assert not space.allows({**CENTER, "heads": 5})


def test_what_was_measured_need_not_meet_the_constraints() -> None:
    optimizer = CARBS(PARAMS, constraints=["width <= 64"])
    optimizer.observe({**CENTER, "width": 80}, output=1.0, cost=1.0)
    assert len(optimizer.observations) == 1


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        ("width <", ["'width <'", "is no expression"]),
        ("width = 3", ["'width = 3'", "is no expression"]),
        ("width; heads", ["is no expression"]),
        ("", ["is no expression"]),
        ("widht <= 64", ["'widht <= 64'", "names ['widht']", "'width'"]),
        ("3 < 4", ["names no parameter", "'width'"]),
        ("width > min", ["names ['min']"]),
        ("width.real > 0", ["width.real"]),
        ("optimizer.upper() == 'SGD'", ["optimizer.upper()"]),
        ("optimizer == 'adamw' or exit(width)", ["exit(width)", "'log10'"]),
        ("__import__('os').system('true') or width", ["__import__"]),
        ("[width for _ in (1, 2)]", ["[width for"]),
        ("(lambda: width)()", ["lambda"]),
        ("f'{width}' == '64'", ["f'{width}'"]),
        ("optimizer[0:1] == 'a'", ["0:1"]),
        ("mix['cod'] >= 0.1", ["\"mix['cod'] >= 0.1\"", "cannot be evaluated", "KeyError: 'cod'"]),
        ("mix.cod >= 0.1", ["'mix.cod >= 0.1'", "cannot be evaluated", "KeyError: 'cod'"]),
        ("optimizer.beta > 0", ["holds 'optimizer.beta'"]),
        ("optimizer < 3", ["'optimizer < 3'", "cannot be evaluated", "TypeError"]),
        # Tried although the centre lacks the parameter.
        ("momentum < 'high'", ["\"momentum < 'high'\"", "cannot be evaluated"]),
        (
            "width > 64",
            ["the search centre", "violates the constraint 'width > 64'", "'width': 64"],
        ),
        (3, ["constraint 3", "neither an expression nor a function"]),
    ],
)
def test_an_impossible_constraint_is_refused(constraint: Any, said: list[str]) -> None:
    for make in (SearchSpace, lambda params, c: CARBS(params, constraints=c)):
        with pytest.raises(ValueError) as refusal:  # the message is compared below
            make(PARAMS, [constraint])
        for words in said:
            assert words in str(refusal.value)


def test_a_function_that_the_centre_violates_or_that_raises_is_named() -> None:
    def fits_in_memory(params: Any) -> bool:
        return bool(params["wdith"] < 64)

    def is_small(params: Any) -> bool:
        return False

    with pytest.raises(ValueError, match=r"fits_in_memory raised KeyError: 'wdith', at .*'width'"):
        SearchSpace(PARAMS, [fits_in_memory])
    with pytest.raises(ValueError, match="violates the constraint is_small"):
        SearchSpace(PARAMS, [is_small])


def test_expressions_can_be_asked_in_threads() -> None:
    space = SearchSpace(PARAMS, ["width % heads == 0 and heads == 4"])
    answers: list[bool] = []
    other = threading.Thread(
        target=lambda: answers.append(space.allows({**CENTER, "heads": 5})), daemon=True
    )

    class Width(int):
        """In the middle of one evaluation another begins."""

        def __mod__(self, other_: int) -> int:
            other.start()
            other.join(0.1)
            return int(self) % other_

    assert space.allows({**CENTER, "width": Width(64)})
    other.join()
    assert answers == [False]


def test_a_sampler_with_expressions_can_be_copied() -> None:
    sampler = copy.deepcopy(CarbsSampler(PARAMS, constraints=["width % heads == 0"]))
    assert not sampler.space.allows({**CENTER, "heads": 5})


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ("6 * width ** 2 * heads / 1e3", 6 * 64**2 * 4 / 1e3),
        ("log10(width) + max(heads, 9) * mix['code']", math.log10(64) + 4.5),
        ("(optimizer == 'adamw') * width + 1", 65.0),
        ("1 + 0 * width", 1.0),
    ],
)
def test_an_expression_says_what_many_configurations_cost(cost: str, expected: float) -> None:
    space = SearchSpace(PARAMS, cost=cost)
    Z = np.tile(space.center, (3, 1))
    assert 10 ** space.log10_cost(Z) == pytest.approx([expected] * 3)


@pytest.mark.parametrize(
    ("cost", "said"),
    [
        ("6 * widht", ["cost '6 * widht'", "names ['widht']", "'width'"]),
        ("exit(width)", ["exit(width)", "'log10'"]),
        ("width - 65", ["cost 'width - 65' is -1 at the search centre", "positive"]),
        ("optimizer * 2", ["cost 'optimizer * 2'", "cannot be evaluated"]),
        ("width if optimizer == 'adamw' else 1", ["without 'and', 'or' and 'if'"]),
        ("mix['cod'] * width", ["cannot be evaluated", "KeyError: 'cod'"]),
    ],
)
def test_an_expression_that_is_no_cost_is_refused(cost: str, said: list[str]) -> None:
    with pytest.raises(ValueError) as refusal:  # the message is compared below
        SearchSpace(PARAMS, cost=cost)
    for words in said:
        assert words in str(refusal.value)
