"""The terminal that all commands print to, and how text that is not ours is printed there."""

from __future__ import annotations

from typing import Any

from rich.console import Console

console = Console()
# For console.print: names and paths as they are, without markup, colours or new lines.
PLAIN: dict[str, Any] = {"markup": False, "highlight": False, "soft_wrap": True}
