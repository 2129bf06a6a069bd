"""Is this node fit to train on? Nodes break, slow down, and compute wrong without an error.

:func:`check_node` runs on the node before a job trains, and writes down in some seconds what it
measured beside what it expected. What needs other nodes to compare with is for the controller:
:func:`compared` judges a node's speed by the sweep's others, and :func:`normalised_cost` takes it
out of a run's cost.

Speed is that of a matrix product, in TFLOP/s: in bfloat16 on a GPU, on one thread of a CPU in
float32. Bandwidth is that of a copy within the memory, read and written, in GB/s.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import platform
import re
import shutil
import socket
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import BaseModel, ConfigDict

from carbs.launchers.job.distributed import local_device, process_group
from carbs.launchers.job.protocol import TaskLostError, task

GIB = 2**30
SLOW = 1.5  # times as slow as the median is too slow
MIN_EARLIER = 3  # reports, before there is a median to speak of
RENDEZVOUS_S = 60.0  # the tasks of a job do not start at the same moment


class Check(BaseModel):
    """One question, with its evidence."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    is_passed: bool
    measured: str
    expected: str

    def __str__(self) -> str:
        return f"{self.name}: {self.measured}, expected {self.expected}"


class HealthReport(BaseModel):
    """What was seen of a node.

    Attributes:
        node: its name, Slurm's where there is one.
        device: the model of the GPU or CPU that trains.
        n_devices: visible GPUs.
        rank: of the task that looked.
        time: Unix time at the end of it.
        duration_s: that it took.
        speed: TFLOP/s of a matrix product, of the slowest device; None where it failed.
        bandwidth: GB/s of a copy in its memory, likewise.
        checks: all of them, passed and failed.
        unfit_ranks: tasks of this job whose own report is bad.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    node: str
    device: str
    n_devices: int
    rank: int = 0
    time: float
    duration_s: float
    speed: float | None = None
    bandwidth: float | None = None
    checks: tuple[Check, ...]
    unfit_ranks: tuple[int, ...] = ()

    @property
    def is_healthy(self) -> bool:
        """Whether this node passed."""
        return all(check.is_passed for check in self.checks)

    @property
    def may_train(self) -> bool:
        """Whether the nodes of all tasks passed: otherwise none should begin."""
        return self.is_healthy and not self.unfit_ranks

    @property
    def problems(self) -> tuple[str, ...]:
        """A line for each check that failed: what was measured, and what was expected."""
        return tuple(str(check) for check in self.checks if not check.is_passed)


def check_node(
    folder: Path,
    *,
    n_devices: int | None = None,
    min_memory_gib: float = 1.0,
    min_disk_gib: float = 0.1,
    timeout_s: float = 20.0,
) -> HealthReport:
    """Look at the node that this process runs on. In a job of several tasks, all must call it.

    It takes two seconds on a CPU and some more on GPUs. What does not answer counts as failed when
    the time is up, such as a file system that hangs.

    Args:
        folder: of the checkpoints; a file is written there, read and deleted.
        n_devices: GPUs that were asked for; None where any number will do.
        min_memory_gib: that must be free on the host.
        min_disk_gib: that must be free in the folder.
        timeout_s: for each of the checks.
    """
    started = time.monotonic()
    within = partial(_within, timeout_s)
    checks: list[Check] = []
    seen = within("devices", list_devices, checks) or []
    checks += [_count(len(seen), n_devices)] if n_devices is not None else []
    # One of several tasks on a node looks at its own device, or they would slow each other down.
    rank, n_tasks = task()
    devices = [local_device()] if n_tasks > 1 or not seen else seen
    speeds = [within(f"product on {d}", partial(measure_product, d), checks) for d in devices]
    bandwidths = [within(f"memory of {d}", partial(measure_copy, d), checks) for d in devices]
    within("host memory", partial(_host_memory, min_memory_gib), checks)
    within("disk", partial(check_folder, folder, min_disk_gib), checks)
    if seen:
        within("NVML", partial(check_nvml, devices), checks)
        within("kernel log", check_kernel_log, checks)
    report = HealthReport(
        node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        device=_model(devices[0]),
        n_devices=len(seen),
        rank=rank,
        time=time.time(),
        duration_s=time.monotonic() - started,
        speed=_slowest(speeds),
        bandwidth=_slowest(bandwidths),
        checks=tuple(checks),
    )
    return _with_other_tasks(report, devices[0]) if n_tasks > 1 else report


def slowdown(report: HealthReport, earlier_reports: Iterable[HealthReport]) -> float | None:
    """How many times slower the node is than the median of the same device type; below 1 if faster.

    None where the node has no speed, or fewer than three reports on that device type have.
    """
    return _behind(report.speed, [r.speed for r in _same_device(report, earlier_reports)])


def compared(
    report: HealthReport, earlier_reports: Iterable[HealthReport], limit: float = SLOW
) -> HealthReport:
    """The report with two more checks: speed and bandwidth beside the medians of the device type.

    Args:
        report: of the node.
        earlier_reports: of this sweep, on any device.
        limit: a node that is more times slower than the median fails.
    """
    peers = _same_device(report, earlier_reports)
    checks = []
    for name, unit in (("speed", "TFLOP/s"), ("bandwidth", "GB/s")):
        measured = getattr(report, name)
        of_peers = [value for r in peers if (value := getattr(r, name)) is not None]
        behind = _behind(measured, of_peers)
        if behind is not None:
            median = statistics.median(of_peers)
            expected = f"at least {median / limit:.4g} (median {median:.4g} on {report.device})"
            checks.append(_check(name, behind <= limit, f"{measured:.4g} {unit}", expected))
    return report.model_copy(update={"checks": (*report.checks, *checks)})


def usual_speed(device: str, reports: Iterable[HealthReport]) -> float | None:
    """TFLOP/s that are usual on a device type; None where no report has any."""
    speeds = [r.speed for r in reports if r.device == device and r.speed is not None]
    return statistics.median(speeds) if speeds else None


def normalised_cost(cost: float, speed: float | None, median_speed: float | None) -> float:
    """What a run would have cost on a node of the usual speed: ``cost * speed / median_speed``.

    A run is taken to be as much slower as the matrix product is, which holds while it computes and
    not while it waits for data. The optimizer learns from this cost; the measured one is kept
    beside it, and the budget pays that.

    Args:
        cost: measured, in units of time of the device.
        speed: of the node, in TFLOP/s; None where it was not measured: then the cost stays.
        median_speed: of the sweep's nodes with the same device; None likewise.
    """
    if speed is None or median_speed is None:
        return cost
    if not (speed > 0 and median_speed > 0):
        raise ValueError(f"speeds are {speed} and {median_speed}, expected positive TFLOP/s")
    return cost * speed / median_speed


def _same_device(report: HealthReport, reports: Iterable[HealthReport]) -> list[HealthReport]:
    return [r for r in reports if r.device == report.device]


def _behind(value: float | None, of_peers: Sequence[float | None]) -> float | None:
    known = [peer for peer in of_peers if peer is not None]
    if value is None or len(known) < MIN_EARLIER:
        return None
    return statistics.median(known) / value


def _check(name: str, is_passed: bool, measured: str, expected: str) -> Check:
    return Check(name=name, is_passed=is_passed, measured=measured, expected=expected)


Look = Callable[[], tuple[Any, list[Check]]]


def _within(timeout_s: float, name: str, look: Look, checks: list[Check]) -> Any:
    """What ``look`` measures; its checks are added. If it raises or does not return, it failed."""
    answer: list[tuple[Any, list[Check]]] = []

    def ask() -> None:
        try:
            answer.append(look())
        except Exception as error:  # whatever a broken driver, disk or library raises
            line = f"{type(error).__name__}: {''.join(str(error).splitlines()[:1])}"
            answer.append((None, [_check(name, False, line, "an answer")]))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not answer:
        expected = f"one within {timeout_s:g} s"
        answer.append((None, [_check(name, False, "no answer", expected)]))
    measured, found = answer[0]
    checks += found
    return measured


def list_devices() -> tuple[list[torch.device], list[Check]]:
    """The GPUs that this process sees."""
    n = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cuda", i) for i in range(n)], []


def _count(n_seen: int, n_asked: int) -> Check:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    measured = f"{n_seen} visible (CUDA_VISIBLE_DEVICES={visible})"
    return _check("devices", n_seen >= n_asked, measured, f"{n_asked}")


def _model(device: torch.device) -> str:
    """The device's type, the same on all nodes that have it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if named:
            return named[1].strip()
    return platform.processor() or platform.machine()


def _slowest(values: Sequence[float | None]) -> float | None:
    return None if None in values else min(v for v in values if v is not None)


def multiply(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product that is checked and timed."""
    return a @ b


def measure_product(device: torch.device) -> tuple[float | None, list[Check]]:
    """TFLOP/s of a matrix product, after one whose answer is known, computed twice.

    The factors hold small integers, so that every sum in float32, and in TF32 on a GPU, is exact in
    whatever order it is added up. The answer C = A B is known by ``C x = A (B x)`` for two random
    vectors x of integers (Freivalds 1977), in float64 on the host: what is wrong in any element
    shows with a probability above 0.9999.
    """
    is_cuda = device.type == "cuda"
    n = 4096 if is_cuda else 1024
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-3, 4, (n, n), generator=generator).float() for _ in range(2))
    x = torch.randint(-512, 513, (n, 2), generator=generator).double()
    answer = a.double() @ (b.double() @ x)
    name = f"product on {device}"
    expected = f"{n} right rows"
    with _one_thread(), _tensor_cores():
        a, b = a.to(device), b.to(device)
        first, second = multiply(a, b), multiply(a, b)
        n_wrong = int((first.double().cpu() @ x != answer).any(1).sum())
        checks = [_check(name, n_wrong == 0, f"{n_wrong} wrong rows of {n}", expected)]
        n_other = int((first != second).sum())
        if is_cuda:
            # As training computes; what is accumulated in bfloat16 is not exact.
            a, b = a.bfloat16(), b.bfloat16()
            rounded, again = multiply(a, b), multiply(a, b)
            n_other += int((rounded != again).sum())
            far = ~torch.isclose(rounded.float(), first, rtol=2**-6, atol=4.0)
            measured = f"{int(far.sum())} elements far from those in float32"
            checks.append(_check(f"{name} in bfloat16", not far.any(), measured, "none"))
        measured = f"{n_other} elements differ between two times"
        checks.append(_check(f"{name}, again", n_other == 0, measured, "none"))
        seconds = _best_time(partial(multiply, a, b), device)
    return 2 * n**3 / seconds / 1e12, checks


def measure_copy(device: torch.device) -> tuple[float, list[Check]]:
    """GB/s of a copy, far larger than any cache; and how much of a GPU's memory is free."""
    checks = []
    is_cuda = device.type == "cuda"
    if is_cuda:
        free, total = torch.cuda.mem_get_info(device)
        # What this process itself has reserved is free to it.
        free += torch.cuda.memory_reserved(device)
        measured = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
        checks.append(_check(f"memory of {device}", free > 0.9 * total, measured, "90%"))
    source = torch.ones((GIB if is_cuda else GIB // 8) // 4, device=device)
    target = torch.empty_like(source)
    with _one_thread():
        seconds = _best_time(lambda: target.copy_(source), device)
    return 2 * source.nbytes / seconds / 1e9, checks


@contextlib.contextmanager
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _tensor_cores() -> Any:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    matmul.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def _best_time(work: Callable[[], object], device: torch.device, for_s: float = 0.4) -> float:
    """Seconds of the fastest of several times: others' work can only make it slower.

    The first on a GPU wakes it up. On a CPU the time is the thread's own.
    """
    if device.type == "cuda":

        def clock() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()
    else:
        clock = time.thread_time
    work()
    times: list[float] = []
    end = time.perf_counter() + for_s
    while len(times) < 3 or time.perf_counter() < end:
        before = clock()
        work()
        times.append(clock() - before)
    return min(times)


def _host_memory(min_gib: float) -> tuple[None, list[Check]]:
    free = psutil.virtual_memory().available / GIB
    line = f"{free:.2f} GiB available"
    return None, [_check("host memory", free >= min_gib, line, f"at least {min_gib:g} GiB")]


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
        space = _check("disk space", free >= min_gib, line, f"at least {min_gib:g} GiB")
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
        return None, [_check("disk", False, line, "to write, read and delete a file")]
    line = "the same" if is_same else "other bytes than were written"
    return None, [space, _check("disk", is_same, f"read {line} in {folder}", "the same")]


def check_nvml(devices: Sequence[torch.device]) -> tuple[None, list[Check]]:
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
            checks += nvml_checks(nvml, handle, str(device))
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
        checks.append(_check(f"{name} of {device}", is_passed, measured, expected))

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
    return None, [_check("Xid errors", not found, line, f"none in the last {within_s / 3600:g} h")]


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


def _with_other_tasks(report: HealthReport, device: torch.device) -> HealthReport:
    """Whether the tasks can add up numbers together, and which of them are on a bad node."""
    n = task()[1]
    expected = f"the sum over {n} tasks"
    try:
        with process_group(device, timeout_s=RENDEZVOUS_S, meeting=1) as world:
            numbers = torch.full((2**18,), float(world.rank + 1), device=device)
            healthy = torch.zeros(n, device=device)
            healthy[world.rank] = float(report.is_healthy)
            world.add([numbers, healthy])
            n_wrong = int((numbers != n * (n + 1) / 2).sum())
            check = _check("collectives", n_wrong == 0, f"{n_wrong} wrong elements", expected)
            unfit = tuple(rank for rank in range(n) if healthy[rank] != 1)
    except TaskLostError as error:
        check = _check("collectives", False, "".join(str(error).splitlines()[:1]), expected)
        unfit = ()
    return report.model_copy(update={"checks": (*report.checks, check), "unfit_ranks": unfit})
