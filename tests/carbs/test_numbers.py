"""Whatever float() takes is a number; anything else gets a sentence."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import optuna
import pytest
import torch

from carbs import CARBS, LogSpace, Param, SearchSpace
from carbs.study import CarbsSampler, create_study, tell_failure

PARAMS = [Param("lr", LogSpace(), 0.1), Param("width", LogSpace(), 8.0)]


@pytest.mark.parametrize(
    "number",
    [
        2,
        2.0,
        Decimal("2"),
        Fraction(4, 2),
        np.float32(2),
        np.int64(2),
        np.array(2.0),
        np.array([2.0]),
        torch.tensor(2.0),
        torch.tensor([2.0], requires_grad=True),
        torch.tensor(2.0, dtype=torch.bfloat16),
        "2.0",
        " 2e0 ",
    ],
)
def test_numbers_of_any_kind(number: Any) -> None:
    optimizer = CARBS(PARAMS)
    optimizer.observe(optimizer.suggest(), output=number, cost=number)
    optimizer.observe_stopped(
        optimizer.suggest(), output=number, output_deviation=number, cost=number, spent=number
    )
    optimizer.observe_failure(optimizer.suggest(), reason="none", cost=number)
    assert [(run.output, run.cost) for run in optimizer.observations] == [(2.0, 2.0)] * 2
    assert [run.cost for run in optimizer.failures] == [2.0]
    assert type(optimizer.observations[0].output) is float
    study = create_study("numbers", None)
    study.sampler = CarbsSampler(PARAMS)
    tell_failure(study, study.ask().number, "none", number)
    assert study.trials[0].user_attrs["failure"]["cost"] == 2.0
    study = optuna.create_study(sampler=CarbsSampler(cost="spent"))
    for _ in range(2):
        trial = study.ask()
        trial.set_user_attr("spent", number)
        study.tell(trial, trial.suggest_float("x", 0, 1))


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, r"output is a NoneType \(None\), expected a number"),
        ("two", r"output is a str \('two'\), expected a number"),
        ([2.0], r"output is a list"),
        (np.ones(3), r"output is a ndarray \(of shape \(3,\)\)"),
        (torch.ones(2, 2), r"output is a Tensor \(of shape \(2, 2\)\)"),
        (1j, r"output is a complex"),
        (10**400, "output is a int"),
    ],
)
def test_anything_else_gets_a_sentence_and_loses_nothing(value: Any, what: str) -> None:
    optimizer = CARBS(PARAMS)
    suggestion = optimizer.suggest()
    with pytest.raises(ValueError, match=what):
        optimizer.observe(suggestion, output=value, cost=1.0)
    with pytest.raises(ValueError, match=what.replace("output", "cost")):
        optimizer.observe(suggestion, output=1.0, cost=value)
    assert optimizer.pending == (suggestion,)
    optimizer.observe(suggestion, output=1.0, cost=1.0)


def test_one_constraint_needs_no_list() -> None:
    assert SearchSpace(PARAMS, "lr < 1").constraints[0].saved == "lr < 1"
    with pytest.raises(ValueError, match=r"the search centre .* violates the constraint 'lr > 1'"):
        CARBS(PARAMS, constraints="lr > 1")
    optimizer = CARBS(PARAMS, constraints=lambda params: params["lr"] < 1)
    assert len(optimizer.space.constraints) == 1
    assert len(CarbsSampler(PARAMS, constraints="lr < 1").space.constraints) == 1


def test_parameters_are_a_list_of_them() -> None:
    with pytest.raises(ValueError, match=r"params is one Param, expected a list .*\[Param\('lr'"):
        CARBS(PARAMS[0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"params holds 'lr', a str, no Param"):
        CARBS(["lr"])  # type: ignore[list-item]
