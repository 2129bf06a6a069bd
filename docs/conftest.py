"""The code of the pages is run: blocks of Python one after the other, sweep files are checked.

What a reader need not see stands in a comment (``% invisible-code-block: python``).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from sybil import Example, Sybil
from sybil.parsers.myst import CodeBlockParser, PythonCodeBlockParser, SkipParser


def is_sweep_file(text: str) -> bool:
    content = yaml.safe_load(text)
    is_whole = isinstance(content, Mapping) and {"name", "parameters"} <= set(content)
    return is_whole and bool({"command", "function"} & set(content))


def check_sweep_file(example: Example) -> None:
    from carbs.launchers.controller.config import load_sweep

    if is_sweep_file(example.parsed):
        path = Path("sweep.yaml")
        path.write_text(example.parsed)
        load_sweep(path)


def begin(namespace: dict[str, Any]) -> None:
    """In a folder of its own, since the code writes files."""
    namespace["_before"], namespace["_folder"] = Path.cwd(), tempfile.TemporaryDirectory()
    os.chdir(namespace["_folder"].name)


def end(namespace: dict[str, Any]) -> None:
    os.chdir(namespace["_before"])
    namespace["_folder"].cleanup()


pytest_collect_file = Sybil(
    parsers=[
        PythonCodeBlockParser(),
        CodeBlockParser(language="yaml", evaluator=check_sweep_file),
        SkipParser(),
    ],
    patterns=["start.md", "questions.md", "guides/*.md", "laws.md", "search.md", "slurm.md"],
    setup=begin,
    teardown=end,
).pytest()
