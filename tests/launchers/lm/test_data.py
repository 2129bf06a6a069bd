"""The corpus and the mix: nothing held out is trained on, and weights mean what they say."""

from __future__ import annotations

import ast
import contextlib
import re
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from carbs.launchers.lm.answers import START, load_questions
from carbs.launchers.lm.continuations import MAX_ANSWER, MAX_PROMPT
from carbs.launchers.lm.data import shards
from carbs.launchers.lm.data.corpus import BUILTIN_SETS, Corpus, prepare
from carbs.launchers.lm.data.mix import DataMix

BUILTIN = dict.fromkeys(BUILTIN_SETS, "builtin")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="module")
def corpus(shared: Path) -> Corpus:
    return prepare(BUILTIN, shared)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Three components whose text is all a, all b, all c."""
    root = tmp_path_factory.mktemp("letters")
    for letter in "abc":
        (root / letter).mkdir()
        for i in range(4):
            (root / letter / f"{i}.txt").write_text(letter * (1000 + i))
    return prepare({letter: str(root / letter) for letter in "abc"}, root / "prepared")


def text(corpus: Corpus, component: str) -> bytes:
    """What is trained on, where tokens are bytes."""
    tokens = corpus.components[component].tokens()
    return tokens.read(0, len(tokens)).tobytes()


def documents(corpus: Corpus, component: str) -> tuple[list[str], list[str]]:
    """What is trained on, and what is held out."""
    held_out = [t for shard in corpus.components[component].shards for t in shard.held_out_texts()]
    return text(corpus, component).decode().split(START)[1:], held_out


def write_lines(folder: Path, n_files: int) -> Path:
    folder.mkdir()
    for i in range(n_files):
        lines = [f"file {i} has a line that is numbered {j}\n" for j in range(30)]
        (folder / f"page-{i}.txt").write_text("".join(lines))
    return folder


def test_no_question_occurs_in_any_training_text(corpus: Corpus) -> None:
    texts = [text(corpus, name) for name in corpus.components]
    for path in corpus.question_sets.values():
        for question in load_questions(path):
            asked = (question.prompt + question.choices[question.answer]).encode()
            assert not any(asked in text for text in texts)


@pytest.mark.parametrize("component", BUILTIN_SETS)
def test_no_held_out_text_is_trained_on(corpus: Corpus, component: str) -> None:
    sides = documents(corpus, component)
    assert not set.intersection(*map(set, sides))
    train, held_out = (sum(map(len, side)) for side in sides)
    assert 0.02 < held_out / (held_out + train) < 0.2


def test_code_is_trained_on_without_its_docstrings(corpus: Corpus) -> None:
    code = text(corpus, "code")
    assert b"def dedent(text):" in code
    assert b"Remove any common leading whitespace" not in code  # the docstring of that
    # What is left parses, docstrings gone, but for functions that had no other statement.
    parsed = 0
    programs, _ = documents(corpus, "code")
    for program in programs:
        with contextlib.suppress(SyntaxError):
            nodes = ast.walk(ast.parse(program))
            functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
            assert not any(map(ast.get_docstring, functions))
            parsed += 1
    assert parsed > 0.7 * len(programs)


def test_the_sets_are_full_and_their_questions_fit_in_a_sequence(corpus: Corpus) -> None:
    assert set(corpus.question_sets) == {"lines", "sentences", "values"}
    for path in corpus.question_sets.values():
        questions = load_questions(path)
        assert len(questions) == 200
        for question in questions:
            assert len(question.prompt.encode()) <= MAX_PROMPT
            assert all(len(choice.encode()) <= MAX_ANSWER for choice in question.choices)
    assert len(START) + MAX_PROMPT + MAX_ANSWER <= 128


def test_values_are_what_python_prints(corpus: Corpus, capsys: pytest.CaptureFixture[str]) -> None:
    for question in load_questions(corpus.question_sets["values"]):
        exec(question.prompt, {})
        last = capsys.readouterr().out.splitlines(keepends=True)[-1]
        assert last == question.choices[question.answer]


def test_preparing_again_finds_the_same(corpus: Corpus, shared: Path, tmp_path: Path) -> None:
    assert prepare(BUILTIN, shared) == corpus
    files = [path for path in shared.rglob("*") if path.is_file()]
    dates = {path: path.stat().st_mtime_ns for path in files}
    prepare(dict(reversed(BUILTIN.items())), shared)
    assert {path: path.stat().st_mtime_ns for path in files} == dates
    afresh = prepare(BUILTIN, tmp_path)
    assert afresh.folder.name == corpus.folder.name
    for path in corpus.question_sets.values():
        assert (afresh.folder / path.name).read_bytes() == path.read_bytes()
    assert all(text(afresh, name) == text(corpus, name) for name in corpus.components)


def test_jobs_that_prepare_at_once_make_each_shard_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, written = shards._write_shard, []

    def slow_write(*args: Any) -> None:
        written.append(args)
        time.sleep(0.2)  # widens the window in which a missing lock would show; nothing waits on it
        write(*args)

    monkeypatch.setattr(shards, "_write_shard", slow_write)
    where = {name: str(write_lines(tmp_path / name, 5)) for name in ("mine", "yours")}
    (tmp_path / "yours" / "page-5.txt").write_text("which makes the two differ")
    made: list[Corpus] = []
    jobs = [
        threading.Thread(target=lambda: made.append(prepare(where, tmp_path / "shared")))
        for _ in range(8)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(made) == 8
    folders = [ready for *_, ready in written]
    assert len(folders) == len(set(folders)) >= 2
    assert all(corpus == made[0] for corpus in made)


@pytest.mark.parametrize("n_files", [2, 3, 20])
@pytest.mark.parametrize("pattern", ["", "/*.txt", "/**/*"])
def test_a_component_of_ones_own(tmp_path: Path, pattern: str, n_files: int) -> None:
    folder = write_lines(tmp_path / "mine", n_files)
    corpus = prepare({"mine": f"{folder}{pattern}", "exercises": "builtin"}, tmp_path / "shared")
    assert set(corpus.question_sets) == {"mine", "values"}
    trained = set(re.findall(r"file (\d+) ", text(corpus, "mine").decode()))
    asked = {
        re.findall(r"file (\d+) ", question.choices[question.answer])[0]
        for question in load_questions(corpus.question_sets["mine"])
    }
    assert trained and asked and not trained & asked
    assert trained | asked == {str(i) for i in range(n_files)}


def test_a_changed_file_makes_another_corpus(tmp_path: Path) -> None:
    folder = write_lines(tmp_path / "mine", 3)
    before = prepare({"mine": str(folder)}, tmp_path / "shared")
    for path in folder.iterdir():
        path.write_text(path.read_text() + "And one more line.\n")
    after = prepare({"mine": str(folder)}, tmp_path / "shared")
    assert b"one more" in text(after, "mine")
    assert b"one more" not in text(before, "mine")


def test_a_copy_of_a_training_file_is_not_held_out(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(f"{'The same text. ' if i else 'Another text. '}" * 9)
    train, held_out = documents(prepare({"mine": str(tmp_path)}, tmp_path / "shared"), "mine")
    assert (len(train), len(held_out)) == (1, 1)
    assert train != held_out


@pytest.mark.parametrize(
    ("components", "named"),
    [
        ({}, "no data"),
        ({"novels": "builtin"}, r"'novels'.*code, prose, exercises"),
        ({"mine": "{folder}/nowhere"}, r"'mine'.*nowhere has no files"),
        ({"mine": "{folder}/empty"}, r"'mine'.*no files.*a folder, or a glob"),
        ({"mine": "{folder}/one"}, r"'mine'.*1 documents.*two or more"),
        ({"mine": "{folder}/binary"}, r"'mine'.*\.bin is not UTF-8"),
        ({"mine": "{folder}/nul"}, r"'mine'.*NUL"),
        ({"my own": "{folder}/two"}, r"'my own'.*letters"),
        ({"lines": "{folder}/two", "code": "builtin"}, r"'lines'.*choose another"),
    ],
)
def test_errors_name_the_component(tmp_path: Path, components: dict[str, str], named: str) -> None:
    for name, contents in {
        "empty": [],
        "one": [b"text"],
        "two": [b"text", b"more text"],
        "binary": [b"\xff\xfe\xfa", b"\xff\xfe\xfa\xfb"],
        "nul": [b"a\0b", b"a\0c"],
    }.items():
        (tmp_path / name).mkdir()
        for i, content in enumerate(contents):
            (tmp_path / name / f"{i}.bin").write_bytes(content)
    components = {name: where.format(folder=tmp_path) for name, where in components.items()}
    with pytest.raises(ValueError, match=named):
        prepare(components, tmp_path / "shared")


def test_a_batch_follows_from_seed_and_step_alone(corpus: Corpus) -> None:
    weights = {"code": 0.5, "prose": 0.25, "exercises": 0.25}
    mix, same = DataMix(corpus, weights, 64, seed=1), DataMix(corpus, weights, 64, seed=1)
    for step in (0, 1):
        mix.batch(step, 4)
    resumed = same.batch(2, 4)
    assert resumed.shape == (4, 65)
    assert mix.batch(2, 4).equal(resumed)
    assert not mix.batch(3, 4).equal(resumed)
    assert not DataMix(corpus, weights, 64, seed=2).batch(2, 4).equal(resumed)
    alone = DataMix(corpus, {"prose": 1.0}, 64, seed=1)
    assert not alone.batch(2, 4).equal(alone.batch(3, 4))
    reordered = DataMix(corpus, dict(reversed(weights.items())), 64, seed=1)
    assert reordered.batch(2, 4).equal(resumed)


def test_sequences_are_passages_of_the_text(corpus: Corpus) -> None:
    prose = text(corpus, "prose") * 2
    for row in DataMix(corpus, {"prose": 1.0}, 64, seed=0).batch(0, 16):
        assert bytes(row.tolist()) in prose


@settings(deadline=None, max_examples=25)
@given(
    shares=st.lists(st.integers(0, 20), min_size=3, max_size=3).filter(any),
    seed=st.integers(0, 2**31),
)
def test_sources_come_in_proportion_to_their_weights(
    letters: Corpus, shares: list[int], seed: int
) -> None:
    weights = np.array(shares) / sum(shares)
    mix = DataMix(letters, dict(zip("abc", weights.tolist(), strict=True)), 8, seed)
    # NUL stands between documents, and so may begin a sequence.
    seen = torch.cat([mix.batch(step, 4) for step in range(100)]).amax(dim=1).numpy()
    for letter, weight in zip(b"abc", weights, strict=True):
        for n in (4, 40, 400):  # a short run gets its mix as well as a long one
            slack = 5 if 0 < weight < 1 else 0
            assert abs(np.count_nonzero(seen[:n] == letter) - n * weight) <= slack


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        ({"a": 0.5, "b": 0.4}, "sum to 0.9"),
        ({"a": 1.0001}, "sum to 1.0001"),
        ({"a": 1.5, "b": -0.5}, "'b' is -0.5"),
        ({"a": 0.5, "z": 0.5}, "'z'; the data has a, b, c"),
        ({"a": float("nan")}, "'a' is nan"),
        ({}, "sum to 0"),
    ],
)
def test_bad_weights_are_named(letters: Corpus, weights: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DataMix(letters, weights, 8, seed=0)


def test_weights_may_be_off_by_rounding(letters: Corpus) -> None:
    DataMix(letters, {"a": 0.3333333, "b": 0.3333333, "c": 0.3333333}, 8, seed=0).batch(0, 2)


def test_a_component_shorter_than_a_sequence_is_named(letters: Corpus) -> None:
    with pytest.raises(ValueError, match=r"'a' has \d+ tokens.*lower seq_len"):
        DataMix(letters, {"a": 1.0}, 10_000, seed=0)
