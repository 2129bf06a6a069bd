"""Question sets in the shapes in which they are published, on made-up rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from carbs.launchers.lm.answers import Question, load_questions
from carbs.launchers.lm.shapes import shape_of

ARC = {"question": "What melts?", "choices": {"text": ["ice", "sand"], "label": ["A", "B"]}}
RACE = {"article": "Tom sat.", "options": ["Tom", "Ann"]}
MMLU = {"question": "2 + 2 = ?", "subject": "sums", "choices": ["3", "4", "5"]}
GAP = {"sentence": "The cup fell off the table since _ was wet.", "option1": "the cup"}
ROWS: list[tuple[str, dict[str, Any], tuple[str, list[str], int]]] = [
    (
        "HellaSwag",
        {
            "ind": 3,
            "activity_label": "Baking",
            "ctx_a": "A man mixes dough.",
            "ctx_b": "he",
            "ctx": "A man mixes dough. [substeps] he",
            "endings": ["bakes it.", "flies [title] away."],
            "label": "0",
        },
        ("Baking: A man mixes dough. he", [" bakes it.", " flies. away."], 0),
    ),
    (
        "ARC",
        {"id": "q1", **ARC, "answerKey": "B"},
        ("Question: What melts?\nAnswer:", [" ice", " sand"], 1),
    ),
    (
        "ARC",
        {
            "id": "q1",
            "question": {
                "stem": "What melts?",
                "choices": [{"text": "ice", "label": "1"}, {"text": "sand", "label": "2"}],
            },
            "answerKey": "1",
        },
        ("Question: What melts?\nAnswer:", [" ice", " sand"], 0),
    ),
    (
        "BoolQ",
        {"question": "is ice cold", "title": "Ice", "answer": True, "passage": "Ice is."},
        ("Ice is.\nQuestion: is ice cold?\nAnswer:", [" no", " yes"], 1),
    ),
    (
        "BoolQ",
        {"question": "is ice hot?", "passage": "Ice is.", "idx": 0, "label": 0},
        ("Ice is.\nQuestion: is ice hot?\nAnswer:", [" no", " yes"], 0),
    ),
    (
        "RACE",
        {"example_id": "h1", **RACE, "question": "Who sat?", "answer": "A"},
        ("Tom sat.\nQuestion: Who sat?\nAnswer:", [" Tom", " Ann"], 0),
    ),
    ("MMLU", {**MMLU, "answer": 1}, ("Question: 2 + 2 = ?\nAnswer:", [" 3", " 4", " 5"], 1)),
    ("MMLU", {**MMLU, "answer": "C"}, ("Question: 2 + 2 = ?\nAnswer:", [" 3", " 4", " 5"], 2)),
    ("LAMBADA", {"text": "He gave it to the dog\n"}, ("He gave it to the", [" dog"], 0)),
    (
        "PIQA",
        {"goal": "Open a jar", "sol1": "twist it", "sol2": "sing", "label": 0},
        ("Question: Open a jar\nAnswer:", [" twist it", " sing"], 0),
    ),
    (
        "WinoGrande",
        {**GAP, "option2": "the table", "answer": "2"},
        (
            "The cup fell off the table since",
            [" the cup was wet.", " the table was wet."],
            1,
        ),
    ),
]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "row", "expected"), ROWS)
def test_a_published_set_is_known_by_its_keys(
    tmp_path: Path, name: str, row: dict[str, Any], expected: tuple[str, list[str], int]
) -> None:
    path = write(tmp_path / "asked.jsonl", row, row)
    prompt, choices, answer = expected
    question = Question(prompt=prompt, choices=choices, answer=answer)
    assert load_questions(path) == [question, question]
    assert shape_of(path) == name


def test_a_passage_may_have_several_questions(tmp_path: Path) -> None:
    row = {
        "id": "high1.txt",
        "article": "Tom sat. Ann ran.",
        "questions": ["Who sat?", "Who ran?"],
        "options": [["Tom", "Ann"], ["Tom", "Ann"]],
        "answers": ["A", "B"],
    }
    first, second = load_questions(write(tmp_path / "race.jsonl", row))
    assert first.choices[first.answer] == " Tom"
    assert second.choices[second.answer] == " Ann"
    assert second.prompt.startswith(row["article"])


def test_a_choice_that_is_written_twice_is_asked_once(tmp_path: Path) -> None:
    row = {**MMLU, "choices": ["3", "5", "5 ", "4"], "answer": 3}
    assert load_questions(write(tmp_path / "m.jsonl", row)) == [
        Question(prompt="Question: 2 + 2 = ?\nAnswer:", choices=[" 3", " 5", " 4"], answer=2)
    ]


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({**ARC, "answerKey": ""}, "ARC.*not published"),
        ({**ARC, "answerKey": "D"}, "ARC.*'D' is none of"),
        ({**MMLU, "answer": 3}, "MMLU.*none of the 3 choices"),
        ({**MMLU, "answer": -1}, "MMLU.*not published"),
        ({**GAP, "option2": "it", "answer": ""}, "WinoGrande.*not published"),
        ({**GAP, "option2": "it", "answer": "1", "sentence": "No."}, "WinoGrande.*no gap"),
        ({**RACE, "question": "Who?", "answer": "both"}, "RACE.*neither a number nor a letter"),
        ({"ctx": "A", "endings": None, "label": 0}, "HellaSwag"),
        ({"query": "what?"}, "no set that is known.*PIQA: goal, sol1, sol2, label"),
    ],
)
def test_a_row_that_is_not_what_it_looks_like_is_named(
    tmp_path: Path, row: dict[str, Any], named: str
) -> None:
    path = write(tmp_path / "asked.jsonl", {**ARC, "answerKey": "A"}, row)
    with pytest.raises(ValueError, match=rf"asked\.jsonl, line 2: .*{named}"):
        load_questions(path)


def test_compressed_and_parquet_files_are_read(tmp_path: Path) -> None:
    rows = [{**MMLU, "answer": 0}, {**MMLU, "question": "1 + 2 = ?", "answer": 1}]
    plain = load_questions(write(tmp_path / "asked.jsonl", *rows))
    packed = tmp_path / "asked.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "asked.jsonl").read_bytes()))
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "asked.parquet")
    assert load_questions(packed) == plain
    assert load_questions(tmp_path / "asked.parquet") == plain
