"""Who comes from imbue-ai/carbs is told where its names went, and a page has them all."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import carbs
from carbs import CARBS, LogSpace, Param, from_imbue

PARAMS = [Param(name="lr", space=LogSpace(scale=0.5), search_center=1e-4)]
PAGE = Path(__file__).parents[2] / "docs" / "from_imbue.md"


@pytest.mark.parametrize("name", from_imbue.NAMES)
def test_names_of_the_package(name: str) -> None:
    message = f"'{name}' is a name of imbue-ai/carbs; here: "
    with pytest.raises(ImportError, match=message):
        exec(f"from carbs import {name}")
    with pytest.raises(ImportError, match=message):
        getattr(carbs, name)


def test_the_user_sees_the_sentence() -> None:
    code = "from carbs import CARBS, CARBSParams, Param"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1].startswith(
        "ImportError: 'CARBSParams' is a name of imbue-ai/carbs; here: there is no configuration "
        "object: CARBS(params, direction='minimize', max_cost=..., seed=...)"
    )


def test_other_names_are_missed_as_usual() -> None:
    with pytest.raises(ImportError, match="cannot import name 'CARBSParam'"):
        exec("from carbs import CARBSParam")
    assert not hasattr(carbs, "CARBSParam")
    optimizer = CARBS(PARAMS)
    assert not hasattr(optimizer, "suggestion")
    assert not hasattr(CARBS, "suggestion")
    assert not hasattr(optimizer.suggest(), "nothing")
    with pytest.raises(TypeError, match="unexpected keyword argument 'better'"):
        CARBS(PARAMS, better=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("name", from_imbue.OPTIMIZER)
def test_names_of_the_optimizer(name: str) -> None:
    for found in (CARBS(PARAMS), CARBS):
        with pytest.raises(AttributeError, match=f"'{name}' is a name of imbue-ai/carbs; here: "):
            getattr(found, name)


def test_names_of_a_suggestion() -> None:
    suggestion = CARBS(PARAMS).suggest()
    with pytest.raises(AttributeError, match=r"here: suggestion\.params, the configuration"):
        suggestion.suggestion  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(AttributeError, match=r"here: suggestion\.predicted_output"):
        suggestion.log  # type: ignore[attr-defined]  # noqa: B018
    assert pickle.loads(pickle.dumps(suggestion)) == copy.deepcopy(suggestion) == suggestion  # noqa: S301


@pytest.mark.parametrize("name", from_imbue.CONFIG_KEYWORDS)
def test_keywords_of_the_configuration(name: str) -> None:
    with pytest.raises(TypeError, match=f"'{name}' is a name of imbue-ai/carbs; here: "):
        CARBS(PARAMS, **{name: 1})


def test_keywords_of_methods_and_spaces() -> None:
    optimizer: Any = CARBS(PARAMS)
    with pytest.raises(TypeError, match=r"'is_suggestion_remembered' is a name.*forget"):
        optimizer.suggest(is_suggestion_remembered=False)
    with pytest.raises(TypeError, match=r"'input' is a name.*observe\(suggestion, output="):
        optimizer.observe(input={"lr": 1.0}, output=1.0, cost=1.0)
    with pytest.raises(ValueError, match="a LogSpace has no base: its scale is in decades"):
        LogSpace(base=2)  # type: ignore[call-arg]
    # The help of an editor is not in the way of all this.
    assert list(inspect.signature(CARBS).parameters)[:2] == ["params", "constraints"]
    assert list(inspect.signature(CARBS.observe).parameters)[1:] == ["suggestion", "output", "cost"]


def test_the_page_has_every_name() -> None:
    text = PAGE.read_text()
    known = (
        from_imbue.NAMES,
        from_imbue.OPTIMIZER,
        from_imbue.SUGGESTION,
        from_imbue.CONFIG_KEYWORDS,
        from_imbue.SUGGEST_KEYWORDS,
        from_imbue.OBSERVE_KEYWORDS,
    )
    assert [name for names in known for name in names if f"`{name}`" not in text] == []


def test_the_pages_loops_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of Python that are ours, one after the other."""
    monkeypatch.chdir(tmp_path)
    blocks = [block.split("```")[0] for block in PAGE.read_text().split("```python\n")[1:]]
    given: dict[str, Any] = {"train": lambda params: (params["epochs"] ** -0.5, 1.0)}
    for block in blocks:
        if "CARBSParams" not in block:
            exec(block, given)
    assert len(given["optimizer"].observations) > 1
