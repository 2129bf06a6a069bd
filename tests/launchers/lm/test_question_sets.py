"""Several sets of questions in one objective, and sets that stay sealed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from carbs.launchers.job.answers import answered, read_answers, read_questions
from carbs.launchers.job.files import read_curve
from carbs.launchers.job.protocol import Job
from carbs.launchers.lm.answers import Question, evaluate, save_questions
from carbs.launchers.lm.model import ModelConfig, Transformer
from carbs.launchers.lm.question_sets import QuestionSets
from carbs.launchers.lm.train import train

EASY = [Question(prompt="", choices=["aa", "ba"], answer=0)]
HARD = [
    Question(prompt="The cat sat on ", choices=["the mat", "it", "Ünë"], answer=2),
    Question(prompt="What is 3? ", choices=["3"], answer=0),
]


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    found = {}
    for name, questions in {"easy": EASY, "hard": HARD}.items():
        found[name] = tmp_path / f"{name}.jsonl"
        save_questions(found[name], questions)
    return found


def build() -> Transformer:
    model = Transformer(ModelConfig(32, 1), torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.unembedding.mul_(20)
    return model


def test_sets_count_by_their_weights(files: dict[str, Path]) -> None:
    model = build()
    easy, hard = (evaluate(model, asked).nll_per_byte for asked in (EASY, HARD))
    even = QuestionSets(files, {}, {}).ask(model)
    assert even.output == pytest.approx((easy + hard) / 2)
    weighted = QuestionSets(files, {}, {"hard": 3})
    assert weighted.ask(model).output == pytest.approx((easy + 3 * hard) / 4)
    assert weighted.look(model, 10) == pytest.approx(weighted.ask(model).output)
    looked_on = QuestionSets(files, {}, {"hard": 0}).ask(model)
    assert looked_on.output == pytest.approx(easy)
    assert looked_on.evaluations["hard"]["nll_per_byte"] == pytest.approx(hard)


@pytest.mark.parametrize(
    ("sealed", "weights", "named"),
    [
        ([], {"other": 1}, "'other': there is no such set; the open sets are easy, hard"),
        (["kept"], {"kept": 1}, "'kept': it is sealed"),
        ([], {"easy": -1}, "'easy' is -1, and must be 0 or more"),
        ([], {"easy": 0, "hard": 0}, "no question set has any"),
        (["easy"], {}, "'easy' is also the name of an open question set"),
        (["a/b"], {}, "'a/b': use letters"),
        (["copy"], {}, "2 of the 2 questions of 'copy' are also in the open set 'hard'"),
    ],
)
def test_what_cannot_be_is_named(
    files: dict[str, Path], tmp_path: Path, sealed: list[str], weights: dict[str, float], named: str
) -> None:
    for name, asked in {"kept": [Question(prompt="x", choices=["y"], answer=0)]}.items():
        save_questions(tmp_path / f"{name}.jsonl", asked)
    save_questions(tmp_path / "copy.jsonl", HARD)
    closed = {name: tmp_path / f"{name}.jsonl" for name in sealed}
    with pytest.raises(ValueError, match=named):
        QuestionSets(files, closed, weights)


def test_a_sealed_set_is_scored_and_kept_and_nothing_of_it_is_said(
    files: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shared, (before, job) = tmp_path / "shared", (tmp_path / "0", tmp_path / "1")
    before.mkdir()
    job.mkdir()
    settings: dict[str, Any] = {"questions": {"easy": files["easy"]}}
    params = {"width": 32, "depth": 1, "tokens": 16_384, "batch_size": 4}
    without = train(params, Job(before, shared, 0, settings))
    settings["sealed"] = {"hard": files["hard"]}
    result = train(params, Job(job, shared, 0, settings))
    assert result.output == without.output
    curves = [[point.output for point in read_curve(folder)] for folder in (before, job)]
    assert curves[0] == curves[1] != []

    kept = read_answers(job, "hard", is_sealed=True)
    assert kept is not None
    said = json.dumps(result.model_dump()) + "".join(capfd.readouterr())
    assert "hard" not in said
    for value in (kept.right_nll.mean(), *kept.nll):
        assert f"{value:.5}" not in said
    assert answered(job, is_sealed=True) == ["hard"]
    assert answered(job) == ["easy", "lines", "sentences", "values"]
    assert read_questions(shared, kept.version) == [q.model_dump() for q in HARD]


def test_each_answer_is_kept(files: dict[str, Path], tmp_path: Path) -> None:
    model = build()
    asked = QuestionSets(files, {}, {}).ask(model)
    asked.save(Job(tmp_path / "job", tmp_path / "shared", 0, {}))
    kept = read_answers(tmp_path / "job", "hard")
    assert kept is not None
    evaluation = evaluate(model, HARD)
    assert kept.right_nll.mean() == pytest.approx(evaluation.nll_per_byte, rel=1e-6)
    assert kept.version == asked.evaluations["hard"]["version"]
    by_hand = [
        evaluate(model, [HARD[0].model_copy(update={"answer": i})]).nll_per_byte for i in range(3)
    ]
    assert list(kept.chosen) == [by_hand.index(min(by_hand)), 0]
    assert read_answers(tmp_path / "job", "gone") is None
