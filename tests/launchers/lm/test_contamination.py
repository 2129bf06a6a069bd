"""A poisoned corpus is found out, and told with the numbers."""

from __future__ import annotations

import itertools
import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from carbs.launchers.controller.config import load_sweep
from carbs.launchers.controller.control_loop import Controller
from carbs.launchers.controller.sweep import Sweep
from carbs.launchers.lm.data import parallel, sources
from carbs.launchers.lm.data.contamination import measure
from carbs.launchers.lm.data.corpus import Corpus, prepare
from carbs.launchers.lm.data.matching import Matcher
from carbs.launchers.lm.data.shards import PLACES
from carbs.launchers.lm.data.sources import place_of

N_PASTED, N_CLEAN, N_NEAR = 4, 6, 5
WORDS = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"]


def write(rng: random.Random, n_lines: int = 12) -> str:
    return "".join(" ".join(rng.choices(WORDS, k=6)) + "\n" for _ in range(n_lines))


def with_side(text: str, held_out: bool) -> str:
    """The text with a last line that puts it on a side of the split."""
    variants = (f"{text}number {i}\n" for i in itertools.count())
    return next(v for v in variants if (place_of(v) < 0.1 * PLACES) == held_out)


def write_lines(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rng = random.Random(1)
    path = tmp_path / "asked.jsonl"
    with path.open("w") as file:
        for _ in range(N_PASTED + N_CLEAN):
            prompt, right, wrong = (" ".join(rng.choices(WORDS, k=n)) for n in (12, 3, 3))
            choices = [f" {right}", f" {wrong}"]
            file.write(json.dumps({"prompt": prompt, "choices": choices, "answer": 0}) + "\n")
    return path


def texts_of(questions: Path) -> list[str]:
    asked = [json.loads(line) for line in questions.read_text().splitlines()]
    return [question["prompt"] + question["choices"][0] for question in asked]


@pytest.fixture
def poisoned(tmp_path: Path, questions: Path) -> Path:
    """Other case and spaces for what is pasted; a word changed in what is nearly the same."""
    rng = random.Random(2)
    held_out = [with_side(write(rng), held_out=True) for _ in range(20)]
    near = [
        with_side(text.replace(text.split()[30], "another", 1), False) for text in held_out[:N_NEAR]
    ]
    pasted = [
        with_side(f"{write(rng)}Q:  {text.title()}\n\n", held_out=False)
        for text in texts_of(questions)[:N_PASTED]
    ]
    # On the held-out side a question may stand.
    kept = [with_side(texts_of(questions)[-1] + "\n" + write(rng), held_out=True)]
    clean = [with_side(write(rng), held_out=False) for _ in range(100)]
    path = tmp_path / "mine" / "a.jsonl"
    write_lines(path, [*clean, *held_out, *near, *pasted, *kept])
    return path


def test_what_was_pasted_and_what_is_nearly_the_same_is_counted(
    poisoned: Path, questions: Path, tmp_path: Path
) -> None:
    corpus = prepare({"mine": str(poisoned), "exercises": "builtin"}, tmp_path / "shared")
    found = measure(corpus, {"asked": texts_of(questions)})
    assert found["questions"] == {
        "asked": {
            "n": N_PASTED + N_CLEAN,
            "overlapping": N_PASTED,
            "share": N_PASTED / (N_PASTED + N_CLEAN),
            "components": {"mine": N_PASTED},
        }
    }
    near = found["near_duplicates"]["mine"]
    assert near == {"compared": 21, "found": N_NEAR, "share": N_NEAR / 21}
    (written,) = corpus.folder.glob("contamination-*.json")
    assert json.loads(written.read_text())["questions"]["asked"]["which"] == [0, 1, 2, 3]


def test_it_is_measured_once_and_by_several_processes_alike(
    poisoned: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepared() -> Corpus:
        return prepare({"mine": str(poisoned)}, tmp_path / "shared")

    asked = {"asked": texts_of(questions)}
    alone = measure(prepared(), asked)
    (written,) = prepared().folder.glob("contamination-*.json")
    date = written.stat().st_mtime_ns
    assert measure(prepared(), asked) == alone
    assert written.stat().st_mtime_ns == date
    written.unlink()
    monkeypatch.setattr(sources, "PIECE_BYTES", 20_000)
    monkeypatch.setattr(parallel, "_ALONE_BYTES", 0)
    in_pieces = prepare({"mine": str(poisoned.parent)}, tmp_path / "pieces")
    assert len(in_pieces.components["mine"].pieces) > 2
    assert measure(in_pieces, asked, n_processes=2) == alone


def test_without_the_library_near_duplicates_are_not_looked_for(
    poisoned: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rensa", None)
    corpus = prepare({"mine": str(poisoned)}, tmp_path / "shared")
    found = measure(corpus, {"asked": texts_of(questions)})
    assert found["near_duplicates"] is None
    assert found["questions"]["asked"]["overlapping"] == N_PASTED


def test_the_report_tells_it_with_the_numbers_and_when_the_data_changed(
    poisoned: Path,
    questions: Path,
    tmp_path: Path,
    write_sweep: Callable[..., Path],
    run_cli: Callable[..., tuple[int, str, str]],
) -> None:
    keys = {
        "function": "carbs.launchers.lm.train:train",
        "parameters": {
            "learning_rate": {"space": "log", "scale": 0.5, "search_center": 0.01},
            "tokens": {"space": "log", "min": 512, "max": 2048, "search_center": 1024}
            | {"is_integer": True, "scale": 0.5},
        },
        "settings": {"data": {"mine": str(poisoned)}, "questions": {"asked": str(questions)}},
        "executor": "debug",
        "max_in_flight": 1,
    }
    said: list[str] = []
    sweep = Sweep(load_sweep(write_sweep(**keys, max_trials=4)), tmp_path / "s", notify=said.append)
    with Controller(sweep) as controller:
        controller.run()
    assert not said
    # One more document, and the sweep goes on.
    with poisoned.open("a") as file:
        file.write(json.dumps({"text": "another document"}) + "\n")
    code, out, err = run_cli("sweep", write_sweep(**keys, max_trials=6), "--folder", tmp_path / "s")
    assert code == 0, err
    assert re.search(r"warning: trial 4: the data of 'mine' are others: version \w+ -> \w+", out)
    assert "trial 5: the data" not in out
    page = (tmp_path / "s" / "report.html").read_text()
    assert f"{N_NEAR} of 21 held-out documents" in page
    (asked,) = re.findall(r"<tr><td>asked</td>.*?</tr>", page)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", asked)
    assert cells == ["asked", "10", "4", "40.0%", f"mine ({N_PASTED})"]
    assert "The data of mine changed while the sweep went on" in page
    assert re.search(r"\w{16} in 4 trials, 0 to 3; \w{16} in 2 trials, 4 to 5", page)


@given(
    text=st.binary(max_size=300),
    cuts=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 80)), max_size=8),
    others=st.lists(st.binary(min_size=1, max_size=40), max_size=4),
)
def test_patterns_are_found_as_python_finds_them(
    text: bytes, cuts: list[tuple[int, int]], others: list[bytes]
) -> None:
    patterns = [text[at : at + n] for at, n in cuts if text[at : at + n]] + others
    matcher = Matcher(patterns)
    matcher.read(text)
    assert matcher.found == {i for i, pattern in enumerate(patterns) if pattern in text}
