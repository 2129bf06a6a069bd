"""Checks and measurements of a node's GPUs, and of the logs that speak of them."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from carbs.launchers.job import host
from carbs.launchers.job.host import GIB, Check, as_check, product_checks


def list_gpus() -> list[str]:
    """Those that this process sees, by torch's names."""
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [f"cuda:{i}" for i in range(n)]


def gpu_model(device: str) -> str:
    """Its type, the same on all nodes that have it."""
    return torch.cuda.get_device_name(device)


def measure_product(device: str) -> tuple[float | None, list[Check]]:
    """TFLOP/s of a matrix product in bfloat16, after one with a known answer, computed twice.

    The check is that of :func:`carbs.launchers.job.host.measure_product`: the sums are exact in
    TF32 too. As training computes, in bfloat16, the product is near that in float32.
    """
    n = 4096
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-3, 4, (n, n), generator=generator).float() for _ in range(2))
    x = torch.randint(-512, 513, (n, 2), generator=generator).double()
    answer = a.double() @ (b.double() @ x)
    with _tensor_cores():
        a, b = a.to(device), b.to(device)
        first, second = host.multiply(a, b), host.multiply(a, b)
        n_wrong = int((first.double().cpu() @ x != answer).any(1).sum())
        n_other = int((first != second).sum())
        # What is accumulated in bfloat16 is not exact.
        a, b = a.bfloat16(), b.bfloat16()
        rounded, again = host.multiply(a, b), host.multiply(a, b)
        n_other += int((rounded != again).sum())
        far = ~torch.isclose(rounded.float(), first, rtol=2**-6, atol=4.0)
        measured = f"{int(far.sum())} elements far from those in float32"
        checks = product_checks(device, n, n_wrong, n_other)
        checks.append(as_check(f"product on {device} in bfloat16", not far.any(), measured, "none"))
        seconds = host.best_time(partial(host.multiply, a, b), partial(_clock, device))
    return 2 * n**3 / seconds / 1e12, checks


def measure_copy(device: str) -> tuple[float, list[Check]]:
    """GB/s of a copy, far larger than any cache; and how much of the memory is free."""
    free, total = torch.cuda.mem_get_info(device)
    # What this process itself has reserved is free to it.
    free += torch.cuda.memory_reserved(device)
    measured = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    checks = [as_check(f"memory of {device}", free > 0.9 * total, measured, "90%")]
    source = torch.ones(GIB // 4, device=device)
    target = torch.empty_like(source)
    seconds = host.best_time(lambda: target.copy_(source), partial(_clock, device))
    return 2 * source.nbytes / seconds / 1e9, checks


def _clock(device: str) -> float:
    torch.cuda.synchronize(device)
    return time.perf_counter()


@contextlib.contextmanager
def _tensor_cores() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def check_nvml(devices: Sequence[str]) -> tuple[None, list[Check]]:
    """What NVIDIA's management library says of the GPUs, if its ``pynvml`` is installed."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return None, []
    nvml.nvmlInit()
    try:
        checks: list[Check] = []
        for device in devices:
            uid = str(torch.cuda.get_device_properties(device).uuid)
            handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uid.removeprefix('GPU-')}")
            checks += nvml_checks(nvml, handle, device)
        return None, checks
    finally:
        nvml.nvmlShutdown()


def nvml_checks(nvml: Any, handle: Any, device: str) -> list[Check]:
    """Temperature, throttling, ECC and remapped rows of a GPU; what it does not know is left out.

    Args:
        nvml: the module ``pynvml``.
        handle: NVML's, of the GPU.
        device: its name in the checks.
    """
    checks: list[Check] = []

    def ask(name: str, *arguments: Any) -> Any:
        function = getattr(nvml, name, None)
        try:
            return None if function is None else function(handle, *arguments)
        except nvml.NVMLError:  # older GPUs and drivers, and consumers' cards without ECC
            return None

    def add(name: str, is_passed: bool, measured: str, expected: str) -> None:
        checks.append(as_check(f"{name} of {device}", is_passed, measured, expected))

    celsius = ask("nvmlDeviceGetTemperature", nvml.NVML_TEMPERATURE_GPU)
    if celsius is not None:
        slowdown_at = nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
        limit = ask("nvmlDeviceGetTemperatureThreshold", slowdown_at) or MAX_CELSIUS
        add("temperature", celsius < limit, f"{celsius} °C", f"below {limit} °C")
    reasons = ask("nvmlDeviceGetCurrentClocksThrottleReasons")
    if reasons is not None:
        why = [name for name, bit in THROTTLE_REASONS.items() if reasons & bit]
        add("throttling", not why, ", ".join(why) or "none", "none")
    kind, since_boot = nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
    uncorrected = ask("nvmlDeviceGetTotalEccErrors", kind, since_boot)
    if uncorrected is not None:
        add("ECC", uncorrected == 0, f"{uncorrected} uncorrected errors", "none")
    rows = ask("nvmlDeviceGetRemappedRows")
    if rows is not None:
        corrected, uncorrected, is_pending, has_failed = rows
        line = f"{corrected + uncorrected} remapped"
        line += ", more are pending" * bool(is_pending) + ", one failed" * bool(has_failed)
        add("rows", not is_pending and not has_failed, line, "none pending or failed")
    return checks


MAX_CELSIUS = 90
# Bits of NVML's clocks event reasons; an idle GPU or a power cap is nothing unusual.
THROTTLE_REASONS = {
    "hardware slowdown": 0x08,
    "too hot for the software": 0x20,
    "too hot for the hardware": 0x40,
    "power brake": 0x80,
}


def check_kernel_log(
    path: Path = Path("/dev/kmsg"), within_s: float = 3600.0
) -> tuple[None, list[Check]]:
    """NVIDIA's errors (Xid) that are a GPU's own fault, where the kernel's log is readable."""
    try:
        records = _kernel_records(path)
    except OSError:
        return None, []
    found = xid_errors(records, time.clock_gettime(time.CLOCK_MONOTONIC) - within_s)
    line = "; ".join(found[-3:]) or "none"
    return None, [
        as_check("Xid errors", not found, line, f"none in the last {within_s / 3600:g} h")
    ]


# https://docs.nvidia.com/deploy/xid-errors: memory, bus, NVLink and firmware. Others, such as 13,
# 31, 43 and 45, are what a program's own mistakes give.
HARDWARE_XIDS = {48, 61, 62, 63, 64, 69, 74, 79, 92, 94, 95, 119, 120, 136, 140, 143, 145}
_XID = re.compile(r"NVRM: Xid \((?P<place>[^)]*)\): (?P<number>\d+)")


def xid_errors(records: Iterable[str], since_s: float) -> list[str]:
    """The hardware's Xid messages among records of ``/dev/kmsg``.

    Args:
        records: ``priority,number,microseconds since boot,flags;message``.
        since_s: seconds since boot; older ones are left out.
    """
    found = []
    for record in records:
        head, _, message = record.partition(";")
        fields, xid = head.split(","), _XID.search(message)
        if not xid or int(xid["number"]) not in HARDWARE_XIDS:
            continue
        if len(fields) < 3 or not fields[2].isdigit() or int(fields[2]) / 1e6 >= since_s:
            found.append(message.splitlines()[0])
    return found


def _kernel_records(path: Path) -> list[str]:
    records = []
    log = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while True:
            try:
                record = os.read(log, 65_536)
            except BlockingIOError:  # all are read
                break
            except OSError as error:
                if error.errno != errno.EPIPE:  # one was overwritten meanwhile: go on after it
                    raise
                continue
            if not record:
                break
            # A read of the device is a record, one of a file is many.
            records += record.decode(errors="replace").splitlines()
    finally:
        os.close(log)
    return records
