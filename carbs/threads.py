"""Linear algebra on one thread.

Our matrices are small, so that more threads gain little; and where other work keeps the cores busy,
threads that wait for each other take fifty times as long as one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

P = ParamSpec("P")
T = TypeVar("T")


def on_one_thread(function: Callable[P, T]) -> Callable[P, T]:
    """The function, during which the process's linear algebra has one thread."""

    @wraps(function)
    def limited(*args: P.args, **kwargs: P.kwargs) -> T:
        loaded = tuple(name in sys.modules for name in ("scipy.linalg", "torch"))
        with _controller(loaded).limit(limits=1):
            return function(*args, **kwargs)

    return limited


@cache
def _controller(loaded: tuple[bool, ...]) -> ThreadpoolController:
    """Of the libraries that are loaded: looking for them takes longer than a suggestion may."""
    return ThreadpoolController()
