"""Threads of linear algebra: one for what we compute, as many as before for the rest."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from carbs import CARBS, LogSpace, Param, optimizer
from carbs.surrogate import fit_surrogate


def most_threads() -> int:
    return max(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")


def test_suggestions_are_computed_on_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def fit(*args: object, **kwargs: object) -> object:
        seen.append(most_threads())
        return fit_surrogate(*args, **kwargs)  # type: ignore[arg-type]  # as they came

    monkeypatch.setattr(optimizer, "fit_surrogate", fit)
    search = CARBS([Param("x", LogSpace(), 1.0)])
    for x in np.geomspace(0.1, 10, 12).tolist():
        search.observe({"x": x}, output=1 + x**-0.3, cost=x)
    with threadpool_limits(2, user_api="blas"):
        search.suggest()
        assert most_threads() == 2
    assert set(seen) == {1}
