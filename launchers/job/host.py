"""Checks and measurements of a node's CPU, memory and disk, without torch."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pydantic import BaseModel, ConfigDict
from threadpoolctl import threadpool_limits

GIB = 2**30
CPU = "cpu"


class Check(BaseModel):
    """One question, with its evidence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    is_passed: bool
    measured: str
    expected: str

    def __str__(self) -> str:
        return f"{self.name}: {self.measured}, expected {self.expected}"


def as_check(name: str, is_passed: bool, measured: str, expected: str) -> Check:
    return Check(name=name, is_passed=is_passed, measured=measured, expected=expected)


def cpu_model() -> str:
    """The CPU's type, the same on all nodes that have it."""
    with contextlib.suppress(OSError):
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if named:
            return named[1].strip()
    return platform.processor() or platform.machine()


def multiply(a: Any, b: Any) -> Any:
    """The product that is checked and timed."""
    return a @ b


def measure_product() -> tuple[float | None, list[Check]]:
    """TFLOP/s of a matrix product on one thread, after one with a known answer, computed twice.

    The factors hold small integers, so that every sum in float32 is exact in whatever order it is
    added up. The answer C = A B is known by ``C x = A (B x)`` for two random vectors x of integers
    (Freivalds 1977), in float64: what is wrong in any element shows with a probability above
    0.9999.
    """
    n = 1024
    rng = np.random.default_rng(0)
    a, b = rng.integers(-3, 4, (2, n, n)).astype(np.float32)
    x = rng.integers(-512, 513, (n, 2)).astype(float)
    answer = a.astype(float) @ (b.astype(float) @ x)
    with threadpool_limits(1):
        first, second = multiply(a, b), multiply(a, b)
        n_wrong = int((first.astype(float) @ x != answer).any(1).sum())
        n_other = int((first != second).sum())
        seconds = best_time(partial(multiply, a, b), time.thread_time)
    return 2 * n**3 / seconds / 1e12, product_checks(CPU, n, n_wrong, n_other)


def product_checks(device: str, n: int, n_wrong: int, n_other: int) -> list[Check]:
    """Of ``n`` rows so many were wrong, and so many elements differed the second time."""
    name = f"product on {device}"
    wrong = f"{n_wrong} wrong rows of {n}"
    other = f"{n_other} elements differ between two times"
    return [
        as_check(name, n_wrong == 0, wrong, f"{n} right rows"),
        as_check(f"{name}, again", n_other == 0, other, "none"),
    ]


def measure_copy() -> tuple[float, list[Check]]:
    """GB/s of a copy, far larger than any cache."""
    source = np.ones(GIB // 8 // 4, dtype=np.float32)
    target = np.empty_like(source)
    seconds = best_time(lambda: np.copyto(target, source), time.thread_time)
    return 2 * source.nbytes / seconds / 1e9, []


def best_time(work: Callable[[], object], clock: Callable[[], float], for_s: float = 0.4) -> float:
    """Seconds of the fastest of several times: others' work can only make it slower."""
    work()  # the first wakes a device up
    times: list[float] = []
    end = time.perf_counter() + for_s
    while len(times) < 3 or time.perf_counter() < end:
        before = clock()
        work()
        times.append(clock() - before)
    return min(times)


def check_memory(min_gib: float) -> tuple[None, list[Check]]:
    """Whether so much is free."""
    free = psutil.virtual_memory().available / GIB
    line = f"{free:.2f} GiB available"
    return None, [as_check("host memory", free >= min_gib, line, f"at least {min_gib:g} GiB")]


def check_folder(folder: Path, min_gib: float) -> tuple[None, list[Check]]:
    """Free space, and whether what is written there is read back and can be deleted."""
    content = os.urandom(2**20)
    file = folder / f"health-{uuid.uuid4().hex}"
    is_new = not folder.exists()
    step = "make the folder"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        step = "ask for the free space"
        free = shutil.disk_usage(folder).free / GIB
        line = f"{free:.2f} GiB free in {folder}"
        space = as_check("disk space", free >= min_gib, line, f"at least {min_gib:g} GiB")
        try:
            step = "write"
            with file.open("xb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
                # So that it is read from the disk, where the system does as it is told.
                with contextlib.suppress(OSError):
                    os.posix_fadvise(out.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            step = "read"
            is_same = file.read_bytes() == content
        finally:
            with contextlib.suppress(FileNotFoundError):
                file.unlink()
            if is_new:
                with contextlib.suppress(OSError):
                    folder.rmdir()
    except OSError as error:
        line = f"cannot {step}: {error}"
        return None, [as_check("disk", False, line, "to write, read and delete a file")]
    line = "the same" if is_same else "other bytes than were written"
    return None, [space, as_check("disk", is_same, f"read {line} in {folder}", "the same")]
