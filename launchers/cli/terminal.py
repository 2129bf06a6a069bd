"""The terminal that all commands print to, and how text that is not ours is printed there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console

console = Console()
# For console.print: names and paths as they are, without markup, colours or new lines.
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
JsonOption = Annotated[bool, typer.Option("--json", help="For programs.")]


def print_json(value: Any) -> None:
    """For programs: as JSON knows it, without NaN and Infinity, which become null."""
    from pydantic_core import to_json

    print(to_json(value, indent=1, inf_nan_mode="null", serialize_unknown=True).decode())


@contextmanager
def working(what: str) -> Iterator[None]:
    """Says what takes its time: a line that moves, in a terminal, and nothing elsewhere.

    On the standard error: what a program reads stays as it is.
    """
    with Console(stderr=True).status(what):
        yield
