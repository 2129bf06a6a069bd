"""``carbs prepare``: what the first job would have done, done before it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

WriteSweep = Callable[..., Path]
RunCli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sweep(tmp_path: Path, write_sweep: WriteSweep) -> Path:
    """Of two tokenizers: bytes, and one that knows words by their letters."""
    with (tmp_path / "lines.jsonl").open("w") as file:
        for i in range(60):
            lines = [f"Line {j} of document {i} says {i * j}.\n" for j in range(20)]
            file.write(json.dumps({"text": "".join(lines)}) + "\n")
    letters = {letter: i for i, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    tokenizer = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.save(str(tmp_path / "letters.json"))
    choices = ["bytes", str(tmp_path / "letters.json")]
    return write_sweep(
        function="carbs.launchers.lm.train:train",
        parameters={
            "tokens": {"space": "log", "is_integer": True, "min": 2048, "search_center": 2048},
            "tokenizer": {"space": "choice", "choices": choices, "search_center": "bytes"},
        },
        settings={"data": {"mine": str(tmp_path / "lines.jsonl")}, "width": 32, "depth": 1},
        max_trials=1,
        executor="debug",
    )


def test_the_first_job_finds_what_was_prepared(
    sweep: Path, run_cli: RunCli, tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    code, said, problem = run_cli("prepare", sweep, "--folder", folder)
    assert code == 0, problem
    for words in ("tokens of bytes to train on", "tokens of letters to train on", "overlap with"):
        assert words in said
    made = files(folder / "shared")
    assert len([path for path in made if path.endswith("shard.json")]) == 2
    assert len([path for path in made if "contamination-" in path]) == 2
    assert run_cli("prepare", sweep, "--folder", folder)[1] == said
    assert files(folder / "shared") == made
    code, _, problem = run_cli("sweep", sweep, "--folder", folder)
    assert code == 0, problem
    after = files(folder / "shared")
    assert {path: after[path] for path in made} == made
    new = after.keys() - made.keys()
    assert not any(path.startswith(("shards", "corpus", "components")) for path in new)


def files(folder: Path) -> dict[str, Any]:
    """Each with its date, but for the locks."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and "lock" not in str(path.relative_to(folder))
    }


def test_what_cannot_be_prepared_is_told(
    run_cli: RunCli, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    code, _, said = run_cli("prepare", write_sweep(function=None, command="python t.py {x}"))
    assert code == 2 and "for the reference job, and this runs a command" in said
    code, _, said = run_cli("prepare", write_sweep(), "--folder", tmp_path / "sweep")
    assert code == 2 and "unknown parameter 'x'" in said
    rate = {"learning_rate": {"space": "log", "search_center": 0.01}}
    file = write_sweep(parameters=rate, settings={"data": {"mine": str(tmp_path / "absent")}})
    code, _, said = run_cli("prepare", file, "--folder", tmp_path / "sweep")
    assert code == 2 and "'mine'" in said and "has no files" in said
