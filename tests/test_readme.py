"""The README's loops run as they stand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest

import carbs
from carbs import CARBS
from carbs.result import SearchResult

README = Path(__file__).parent.parent / "README.md"


def blocks() -> list[str]:
    """Those of Python between the headings of the search and of sweeps, with fewer trials."""
    part = README.read_text().split("## Search over your own function")[1].split("As a sweep")[0]
    found = [block.split("```")[0] for block in part.split("```python\n")[1:]]
    return [block.replace("100", "6") for block in found]


def train(learning_rate: float, width: int) -> tuple[float, float]:
    return width**-0.3 + (math.log10(learning_rate) + 2.5) ** 2, width / 100


def test_the_loops_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    names: dict[str, Any] = {name: getattr(carbs, name) for name in carbs.__all__}
    names["train"] = train
    for block in blocks():
        exec(compile(block, str(README), "exec"), names)
    assert len(blocks()) == 3
    result, optimizer, study = names["result"], names["optimizer"], names["study"]
    assert isinstance(result, SearchResult)
    assert isinstance(optimizer, CARBS)
    assert len(result.observations) == len(optimizer.observations) == len(study.trials) == 6
    assert {"search.json", "optimizer.json"} <= {path.name for path in tmp_path.iterdir()}
    assert capsys.readouterr().out.startswith("Observation(output 0.")
