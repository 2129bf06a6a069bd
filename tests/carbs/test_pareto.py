"""The front against its definition, the hypervolume against a count of unit cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from carbs import CARBS, LinearSpace, Param
from carbs.pareto import hypervolume, most_telling, pareto_front

# Few distinct coordinates: ties and duplicates are the rule.
points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)
SIDE = 5


def arrays(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    table = np.array(pairs, dtype=float).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def beats(a: tuple[int, int], b: tuple[int, int]) -> bool:
    return a != b and a[0] <= b[0] and a[1] <= b[1]


@given(points)
def test_the_front_is_what_nothing_else_beats(pairs: list[tuple[int, int]]) -> None:
    front = pareto_front(*arrays(pairs)).tolist()
    unbeaten = {a for a in pairs if not any(beats(b, a) for b in pairs)}
    assert [pairs[i] for i in front] == sorted(unbeaten)
    # Of equal points the first.
    assert all(pairs.index(pairs[i]) == i for i in front)


@given(points, st.integers(2, 12))
def test_of_many_runs_the_front_and_some_of_all_others_tell_most(
    pairs: list[tuple[int, int]], n_most: int
) -> None:
    costs, outputs = arrays(pairs)
    chosen = most_telling(costs, outputs, n_most).tolist()
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(len(pairs), n_most)
    front = set(pareto_front(costs, outputs).tolist())
    if len(front) <= n_most // 2 and len(set(costs)) == len(costs):
        assert front <= set(chosen)


def test_the_front_of_nothing_is_empty() -> None:
    assert pareto_front(np.array([]), np.array([])).tolist() == []


@given(points)
def test_the_hypervolume_counts_the_dominated_cells(pairs: list[tuple[int, int]]) -> None:
    cells = sum(
        any(cost <= i and output <= j for cost, output in pairs)
        for i in range(SIDE)
        for j in range(SIDE)
    )
    assert hypervolume(*arrays(pairs), SIDE, SIDE) == cells


real_points = st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), max_size=10)


@given(real_points, st.tuples(st.floats(-5, 5), st.floats(-5, 5)))
def test_another_point_never_shrinks_the_hypervolume(
    pairs: list[tuple[float, float]], another: tuple[float, float]
) -> None:
    before = hypervolume(*arrays(pairs), 4.0, 4.0)  # type: ignore[arg-type]
    after = hypervolume(*arrays([*pairs, another]), 4.0, 4.0)  # type: ignore[list-item]
    assert after >= before - 1e-12
    assert (after > before + 1e-12) <= (another[0] < 4 and another[1] < 4)


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_an_optimizers_front_keeps_repeated_points_apart(direction: str, sign: int) -> None:
    optimizer = CARBS([Param("x", LinearSpace(), 0.0)], direction=direction)  # type: ignore[arg-type]
    # One configuration measured three times: dearer and better, dearer and worse.
    for output, cost in [(3.0, 1.0), (2.0, 2.0), (2.5, 3.0)]:
        optimizer.observe({"x": 1.0}, output=sign * output, cost=cost)
    optimizer.observe({"x": 2.0}, output=sign * 1.0, cost=9.0)
    assert [(o.cost, sign * o.output) for o in optimizer.pareto_front()] == [
        (1.0, 3.0),
        (2.0, 2.0),
        (9.0, 1.0),
    ]
