"""A sweep's questions, from their answers in the jobs' folders to its report; sealed ones too."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from carbs.launchers.controller.answers import UNSEALED, answered_sets, read_seal
from carbs.launchers.controller.sweep import Sweep
from carbs.launchers.job.answers import read_answers
from carbs.launchers.lm.answers import Question, save_questions
from carbs.launchers.loggers.runs import TrialRun

RunCli = Callable[..., tuple[int, str, str]]
N_TRIALS = 18
SCENES = [
    ("cat", "bird", "house"),
    ("dog", "fish", "river"),
    ("fox", "hen", "barn"),
    ("boy", "girl", "school"),
    ("cow", "calf", "field"),
    ("bee", "rose", "garden"),
]
MISLABELLED = 4


def ask(scene: int, right: int) -> Question:
    """Where the animal saw the other: the text always says the same place."""
    one, other, place = SCENES[scene]
    prompt = f"On day {scene} the {one} saw a {other} near the "
    return Question(prompt=prompt, choices=[f"{place}.\n", "q <b>zoo</b>!\n"], answer=right)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep of real, tiny models; one of its questions is marked wrongly."""
    root = tmp_path_factory.mktemp("questions")
    (root / "text").mkdir()
    lines = [f"On day {i} the {a} saw a {b} near the {c}.\n" for i, (a, b, c) in enumerate(SCENES)]
    for i in range(12):
        (root / "text" / f"{i}.txt").write_text("".join(lines * 8) + f"The end of {i}.\n")
    asked = [ask(scene, right=int(scene == MISLABELLED)) for scene in range(len(SCENES))]
    save_questions(root / "asked.jsonl", asked)
    sealed = [
        Question(prompt="the cat saw a ", choices=["bird", "gnu"], answer=0),
        Question(prompt="the dog saw a ", choices=["emu", "fish"], answer=1),
    ]
    save_questions(root / "kept.jsonl", sealed)
    (root / "tiny_models.py").write_text(
        "from carbs.launchers.lm.train import train as train_model\n"
        "def train(params, job):\n"
        "    tiny = {'width': 32, 'depth': 1, 'batch_size': 4, 'learning_rate': 0.02}\n"
        "    return train_model({**tiny, **params}, job)\n"
    )
    (root / "sweep.yaml").write_text(
        json.dumps(
            {
                "name": "asked",
                "function": "tiny_models:train",
                "parameters": {
                    "tokens": {
                        "space": "log",
                        "min": 4096,
                        "max": 65536,
                        "is_integer": True,
                        "search_center": 16384,
                    },
                },
                "settings": {
                    "data": {"text": str(root / "text")},
                    "questions": {"text": str(root / "asked.jsonl")},
                    "sealed": {"kept": str(root / "kept.jsonl")},
                },
                "max_trials": N_TRIALS,
                "check": {"cost_factor": 1},
                "executor": "debug",
            }
        )
    )
    return root


def test_what_a_sweep_shows_of_its_questions(
    swept: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = swept / "sweep"
    code, said, problem = run_cli("sweep", swept / "sweep.yaml", "--folder", folder)
    assert code == 0, problem
    sweep = Sweep.open(folder)

    # The planted question is found among the good ones, in the report too, and escaped there.
    (answers,) = answered_sets(sweep)
    assert answers.nll.shape == (N_TRIALS, len(SCENES))
    outputs = {trial.number: trial.values[0] for trial in sweep.study.trials}
    assert answers.scores == pytest.approx([outputs[n] for n in answers.trials], rel=1e-6)
    evidence = answers.evidence()
    assert list(evidence["question"][evidence["verdict"] != ""]) == [MISLABELLED]
    page = (folder / "report.html").read_text()
    assert "The questions themselves" in page
    assert "saw a calf near the" in page
    assert "q &lt;b&gt;zoo&lt;/b&gt;!" in page

    # Of the sealed set nothing is seen: not in what was printed, the report, the table, the study,
    # or what loggers are given.
    scores = []
    for trial in sweep.study.trials:
        kept = read_answers(folder / trial.user_attrs["job"]["folder"], "kept", is_sealed=True)
        assert kept is not None
        scores.append(float(kept.right_nll.mean()))
    checked = read_answers(folder / "jobs" / "check-1", "kept", is_sealed=True)
    assert checked is not None
    scores.append(float(checked.right_nll.mean()))
    seal = read_seal(sweep)
    assert seal is not None
    assert not seal.check
    assert (seal.names, seal.n_trials, seal.opened, seal.sets) == (("kept",), N_TRIALS, None, ())
    _, table, _ = run_cli("export", folder)
    _, status, _ = run_cli("status", folder, "--json")
    runs = [TrialRun.of(trial, sweep.space) for trial in sweep.study.trials]
    stored = json.dumps([trial.user_attrs for trial in sweep.study.trials])
    stored += json.dumps(sweep.study.user_attrs)
    for shown in (said, page, table, status, stored, str(runs)):
        assert not any(f"{score:.8f}"[:-2] in shown for score in scores)
    assert not any("kept" in shown for shown in (said, table, status, stored, str(runs)))
    assert f"{N_TRIALS} trials have answered kept. Their scores were shown to nobody" in page

    # Opened once, on the record; asked again, the record stays.
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert run_cli("unseal", folder)[0] == 1
    assert UNSEALED not in Sweep.open(folder).study.user_attrs
    code, said, _ = run_cli("unseal", folder, "--yes")
    assert code == 0
    record = Sweep.open(folder).study.user_attrs[UNSEALED]
    assert "@" in record["who"]
    assert datetime.fromisoformat(record["when"]).tzinfo is not None
    assert (record["sets"], record["trials"]) == (["kept"], N_TRIALS)
    assert record["who"] in said
    assert run_cli("unseal", folder, "--yes")[1] == said
    assert Sweep.open(folder).study.user_attrs[UNSEALED] == record

    # Now the report and the table show it.
    assert run_cli("report", folder)[0] == 0
    page = (folder / "report.html").read_text()
    assert f"opened by {record['who']} at {record['when']}" in page
    assert "kept (nats per byte)" in page
    seal = read_seal(Sweep.open(folder))
    assert seal is not None
    right = float((checked.chosen == checked.right).mean())
    assert seal.check == {"kept": (scores.pop(), right)}
    assert "check run</td>" in page.partition("Sealed questions")[2]
    exported = pd.read_csv(io.StringIO(run_cli("export", folder)[1]))
    np.testing.assert_allclose(exported["sealed.kept.nll_per_byte"], scores, rtol=1e-6)

    # A study that is made anew still knows that it was opened.
    (folder / "study.db").rename(folder / "study.old")
    assert run_cli("recover", folder)[0] == 0
    assert Sweep.open(folder).study.user_attrs[UNSEALED] == record


def test_there_is_nothing_to_open(run_cli: RunCli, write_sweep: Callable[..., Path]) -> None:
    file = write_sweep(function="json:loads", max_trials=1)
    Sweep.open(_begun(file))
    code, _, said = run_cli("unseal", file.parent / "begun")
    assert code == 2
    assert "no trial of" in said and "sealed: {name: file.jsonl}" in said


def _begun(file: Path) -> Path:
    from carbs.launchers.controller.config import load_sweep

    folder = file.parent / "begun"
    Sweep(load_sweep(file), folder)
    return folder


def test_a_file_of_questions_is_shown_as_models_read_it(run_cli: RunCli, tmp_path: Path) -> None:
    row = {"goal": "Open a jar", "sol1": "twist it", "sol2": "sing", "label": 0}
    (tmp_path / "piqa.jsonl").write_text(json.dumps(row) + "\n")
    code, said, _ = run_cli("questions", tmp_path / "piqa.jsonl", "-o", tmp_path / "mine.jsonl")
    assert code == 0
    assert "1 questions in the shape of PIQA, of 2 choices" in said
    assert "Question: Open a jar\nAnswer:\n* ' twist it'\n  ' sing'\n" in said
    code, said, _ = run_cli("questions", tmp_path / "mine.jsonl")
    assert code == 0
    assert "1 questions, of 2 choices" in said
    (tmp_path / "piqa.jsonl").write_text(json.dumps({**row, "label": -1}) + "\n")
    code, _, said = run_cli("questions", tmp_path / "piqa.jsonl")
    assert code == 2
    assert "line 1: looks like PIQA" in said and "Traceback" not in said
    assert run_cli("questions", tmp_path / "gone.jsonl")[0] == 2
