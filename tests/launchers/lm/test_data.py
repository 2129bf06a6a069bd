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

from carbs.launchers.lm import data
from carbs.launchers.lm.answers import START, load_questions
from carbs.launchers.lm.continuations import MAX_ANSWER, MAX_PROMPT
from carbs.launchers.lm.data import BUILTIN_SETS, Corpus, DataMix, prepare, read_split

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


def write_lines(folder: Path, n_files: int) -> Path:
    folder.mkdir()
    for i in range(n_files):
        lines = [f"file {i} has a line that is numbered {j}\n" for j in range(30)]
        (folder / f"page-{i}.txt").write_text("".join(lines))
    return folder


def test_no_question_occurs_in_any_training_text(corpus: Corpus) -> None:
    texts = [corpus.text(name).tobytes() for name in corpus.components]
    for path in corpus.question_sets.values():
        for question in load_questions(path):
            asked = (question.prompt + question.choices[question.answer]).encode()
            assert not any(asked in text for text in texts)


@pytest.mark.parametrize("component", BUILTIN_SETS)
def test_no_held_out_text_is_trained_on(component: str) -> None:
    split = read_split(component)
    assert not set(split.train) & set(split.held_out)
    held_out, train = (sum(map(len, side)) for side in (split.held_out, split.train))
    assert 0.02 < held_out / (held_out + train) < 0.2


def test_code_is_trained_on_without_its_docstrings(corpus: Corpus) -> None:
    code = corpus.text("code").tobytes()
    assert b"def dedent(text):" in code
    assert b"Remove any common leading whitespace" not in code  # the docstring of that
    # What is left parses, docstrings gone, but for functions that had no other statement.
    parsed = 0
    documents = read_split("code").train
    for text in documents:
        with contextlib.suppress(SyntaxError):
            nodes = ast.walk(ast.parse(text))
            functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
            assert not any(map(ast.get_docstring, functions))
            parsed += 1
    assert parsed > 0.7 * len(documents)


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
    files = {path: path.stat().st_mtime_ns for path in corpus.folder.iterdir()}
    prepare(dict(reversed(BUILTIN.items())), shared)
    assert {path: path.stat().st_mtime_ns for path in corpus.folder.iterdir()} == files
    afresh = prepare(BUILTIN, tmp_path)
    for path in files:
        assert (afresh.folder / path.name).read_bytes() == path.read_bytes()


def test_jobs_that_prepare_at_once_build_one_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, builds = data._build, []

    def slow_build(*args: Any) -> None:
        builds.append(args)
        time.sleep(0.2)  # widens the window in which a missing lock would show; nothing waits on it
        build(*args)

    monkeypatch.setattr(data, "_build", slow_build)
    where = {"mine": str(write_lines(tmp_path / "mine", 5))}
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
    assert len(builds) == 1
    assert all(corpus == made[0] for corpus in made)
    assert [path for path in (tmp_path / "shared").iterdir() if path.is_dir()] == [made[0].folder]


def test_what_a_killed_job_left_is_not_used(tmp_path: Path) -> None:
    where = {"mine": str(write_lines(tmp_path / "mine", 5))}
    ready = prepare(where, tmp_path / "shared").folder
    left = ready.rename(ready.with_suffix(".part"))
    (left / "mine.npy").write_bytes(b"half a file")
    assert prepare(where, tmp_path / "shared").text("mine").size > 1000


@pytest.mark.parametrize("n_files", [2, 3, 20])
@pytest.mark.parametrize("pattern", ["", "/*.txt", "/**/*"])
def test_a_component_of_ones_own(tmp_path: Path, pattern: str, n_files: int) -> None:
    folder = write_lines(tmp_path / "mine", n_files)
    corpus = prepare({"mine": f"{folder}{pattern}", "exercises": "builtin"}, tmp_path / "shared")
    assert set(corpus.question_sets) == {"mine", "values"}
    text = corpus.text("mine").tobytes().decode()
    trained = set(re.findall(r"file (\d+) ", text))
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
    assert b"one more" in after.text("mine").tobytes()
    assert b"one more" not in before.text("mine").tobytes()


def test_a_copy_of_a_training_file_is_not_held_out(tmp_path: Path) -> None:
    for i in range(30):
        (tmp_path / f"{i}.txt").write_text(f"{'The same text. ' if i else 'Another text. '}" * 9)
    split = read_split("mine", str(tmp_path))
    assert not set(split.train) & set(split.held_out)


@pytest.mark.parametrize(
    ("components", "named"),
    [
        ({}, "no data"),
        ({"novels": "builtin"}, r"'novels'.*code, prose, exercises"),
        ({"mine": "{folder}/nowhere"}, r"'mine'.*nowhere.*0 files"),
        ({"mine": "{folder}/empty"}, r"'mine'.*0 files.*two or more"),
        ({"mine": "{folder}/one"}, r"'mine'.*1 file"),
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
    text = corpus.text("prose").tobytes()
    for row in DataMix(corpus, {"prose": 1.0}, 64, seed=0).batch(0, 16):
        assert bytes(row.tolist()) in text


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
    with pytest.raises(ValueError, match=r"'a' has \d+ bytes.*lower seq_len"):
        DataMix(letters, {"a": 1.0}, 10_000, seed=0)
