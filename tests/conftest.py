"""What all tests share: one thread, repeatable examples, and waiting without sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import torch
from hypothesis import settings

# The same examples every time, and no deadline: the first example of a test pays for imports.
settings.register_profile("carbs", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("carbs")

WaitUntil = Callable[[Callable[[], bool], str], None]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def wait_until() -> WaitUntil:
    """``wait_until(condition, what)``: returns once it holds, or fails saying what never came."""

    def wait_until(condition: Callable[[], bool], what: str) -> None:
        nothing = threading.Event()
        deadline = time.monotonic() + 120
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"waited two minutes in vain for {what}")
            nothing.wait(0.005)

    return wait_until
