"""Budgets in their units, and what failures take of them."""

from __future__ import annotations

from typing import Any

import pytest

from carbs.analysis.planning.budget import Budget, Failures

NEVER = Failures(per_hour_per_1000_gpus=0.0)


def test_units_agree() -> None:
    by_flops = Budget.of(flops=1e22, gpu="A100", n_gpus=8, price_per_gpu_hour=2.0, failures=NEVER)
    assert by_flops.gpu_hours == pytest.approx(1e22 / (312e12 * 0.4 * 3600))
    assert by_flops.hours == pytest.approx(by_flops.gpu_hours / 8)
    assert by_flops.money == pytest.approx(2 * by_flops.gpu_hours)
    same: dict[str, Any] = {"gpu": "A100", "n_gpus": 8, "price_per_gpu_hour": 2.0}
    for amount in ({"gpu_hours": by_flops.gpu_hours}, {"money": by_flops.money}):
        assert Budget.of(**amount, **same, failures=NEVER).flops == pytest.approx(1e22)


def test_failures_take_time_and_money_that_grow_with_the_number_of_gpus() -> None:
    few, many = (Budget.of(flops=1e24, n_gpus=n, price_per_gpu_hour=2.0) for n in (8, 16_384))
    assert few.failures_share < 1e-3 < many.failures_share
    # 0.323 failures an hour, half an hour lost each
    assert many.failures_share == pytest.approx(419 / (54 * 24) * 0.5, rel=1e-6)
    assert many.money > few.money
    assert Budget.of(gpu_hours=1e4, n_gpus=16_384).flops < Budget.of(gpu_hours=1e4).flops
    with pytest.raises(ValueError, match="all of the time"):
        Budget.of(flops=1e24, n_gpus=150_000)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give one of"),
        ({"flops": 1e20, "gpu_hours": 1.0}, "give one of"),
        ({"flops": -1.0}, "positive"),
        ({"flops": float("nan")}, "positive"),
        ({"flops": 1e20, "gpu": "abacus"}, "none of"),
        ({"flops": 1e20, "utilisation": 40.0}, "utilisation is 40"),
        ({"flops": 1e20, "n_gpus": 0}, "n_gpus"),
        ({"money": 10.0}, "price_per_gpu_hour"),
    ],
)
def test_what_is_wrong_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Budget.of(**arguments)
