"""Three components that come with Python itself, so that a sweep runs on any machine.

code       the standard library's source, without its docstrings
prose      those docstrings, and the language reference
exercises  small programs that say what they print
"""

from __future__ import annotations

import ast
import functools
import itertools
import platform
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterable
from pathlib import Path
from pydoc_data import topics

from carbs.launchers.lm.exercises import write_programs

COMPONENTS = ("code", "prose", "exercises")
VERSION = f"1, Python {platform.python_version()}"  # of the text: raise it when that changes
N_PROGRAMS = 60_000


def named_texts(component: str) -> Iterable[tuple[str, str]]:
    """A component's texts, each with the name of what it is from: a module, say."""
    if component == "exercises":
        return ((program, program) for program in write_programs(N_PROGRAMS, seed=0))
    if component == "code":
        return ((name, code) for name, code, _ in _library())
    docstrings = ((name, text) for name, _, texts in _library() for text in texts)
    return itertools.chain(docstrings, topics.topics.items())


@functools.cache
def _library() -> list[tuple[str, str, list[str]]]:
    """The standard library: each file's name, its code and its docstrings."""
    library = Path(sysconfig.get_path("stdlib"))
    names = (path.relative_to(library).as_posix() for path in library.rglob("*.py"))
    return [
        (name, *_separate(library / name))
        for name in sorted(names)
        if not _NOT_LIBRARY.search(name)
    ]


# Tests and tables, and what is no library or not installed everywhere.
_NOT_LIBRARY = re.compile(
    r"(^|/)(site-packages|dist-packages|tests?|idlelib|lib2to3|encodings|pydoc_data|distutils|"
    r"config-[^/]*|__phello__)/|(^|/)_sysconfigdata"
)


def _separate(path: Path) -> tuple[str, list[str]]:
    """A Python file's source without its docstrings, and the docstrings."""
    with tokenize.open(path) as file:
        source = file.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        tree = ast.parse(source)
    # Not splitlines, which also splits at form feeds, as the parser does not.
    lines = source.split("\n")
    docstrings: list[str] = []
    removed: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            place = node.body[0] if node.body else None
            if docstring and place and not lines[place.lineno - 1][: place.col_offset].strip():
                docstrings.append(docstring + "\n")
                removed.update(range(place.lineno - 1, place.end_lineno or place.lineno))
    kept = (line for i, line in enumerate(lines) if i not in removed)
    return "\n".join(kept), docstrings
