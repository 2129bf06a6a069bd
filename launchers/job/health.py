"""Is this node fit to train on? Nodes break, slow down, and compute wrong without an error.

:func:`check_node` runs on the node before a job trains, and writes down in some seconds what it
measured beside what it expected. What needs other nodes to compare with is for the controller:
:func:`compared` judges a node's speed by the sweep's others, and :func:`normalised_cost` takes it
out of a run's cost.

Speed is that of a matrix product, in TFLOP/s: in bfloat16 on a GPU, on one thread of a CPU in
float32. Bandwidth is that of a copy within the memory, read and written, in GB/s. What is asked of
the host is in :mod:`carbs.launchers.job.host`, what of GPUs in :mod:`carbs.launchers.job.gpu`,
which alone needs torch, as do the tasks of a job when they talk to each other.
"""

from __future__ import annotations

import os
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from carbs.launchers.job import host
from carbs.launchers.job.environment import task
from carbs.launchers.job.host import Check, as_check
from carbs.launchers.job.protocol import TaskLostError

SLOW = 1.5  # times as slow as the median is too slow
MIN_EARLIER = 3  # reports, before there is a median to speak of
RENDEZVOUS_S = 60.0  # the tasks of a job do not start at the same moment


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
    seen = within("devices", _list_gpus, checks) or [] if _may_have_gpus(n_devices) else []
    checks += [_count(len(seen), n_devices)] if n_devices is not None else []
    # One of several tasks on a node looks at its own device, or they would slow each other down.
    rank, n_tasks = task()
    devices = [_own_gpu()] if seen and n_tasks > 1 else seen
    products, copies = _looks(devices)
    speeds = [within(f"product on {d}", look, checks) for d, look in products.items()]
    bandwidths = [within(f"memory of {d}", look, checks) for d, look in copies.items()]
    within("host memory", partial(host.check_memory, min_memory_gib), checks)
    within("disk", partial(host.check_folder, folder, min_disk_gib), checks)
    if seen:
        from carbs.launchers.job import gpu

        within("NVML", partial(gpu.check_nvml, devices), checks)
        within("kernel log", gpu.check_kernel_log, checks)
    report = HealthReport(
        node=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        device=gpu.gpu_model(devices[0]) if seen else host.cpu_model(),
        n_devices=len(seen),
        rank=rank,
        time=time.time(),
        duration_s=time.monotonic() - started,
        speed=_slowest(speeds),
        bandwidth=_slowest(bandwidths),
        checks=tuple(checks),
    )
    return _with_other_tasks(report) if n_tasks > 1 else report


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
            checks.append(as_check(name, behind <= limit, f"{measured:.4g} {unit}", expected))
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


Look = Callable[[], tuple[Any, list[Check]]]


def _within(timeout_s: float, name: str, look: Look, checks: list[Check]) -> Any:
    """What ``look`` measures; its checks are added. If it raises or does not return, it failed."""
    answer: list[tuple[Any, list[Check]]] = []

    def ask() -> None:
        try:
            answer.append(look())
        except Exception as error:  # whatever a broken driver, disk or library raises
            line = f"{type(error).__name__}: {''.join(str(error).splitlines()[:1])}"
            answer.append((None, [as_check(name, False, line, "an answer")]))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not answer:
        expected = f"one within {timeout_s:g} s"
        answer.append((None, [as_check(name, False, "no answer", expected)]))
    measured, found = answer[0]
    checks += found
    return measured


def _may_have_gpus(n_asked: int | None) -> bool:
    """Whether to look for them, for which torch is needed: some were asked for, or drivers run."""
    drivers = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
    return bool(n_asked) or any(Path(driver).exists() for driver in drivers)


def _list_gpus() -> tuple[list[str], list[Check]]:
    from carbs.launchers.job.gpu import list_gpus

    return list_gpus(), []


def _own_gpu() -> str:
    from carbs.launchers.job.distributed import local_device

    return str(local_device())


def _looks(gpus: Sequence[str]) -> tuple[dict[str, Look], dict[str, Look]]:
    """Products and copies, by the device: the GPUs, or the CPU where there are none."""
    if not gpus:
        return {host.CPU: host.measure_product}, {host.CPU: host.measure_copy}
    from carbs.launchers.job import gpu

    products: dict[str, Look] = {device: partial(gpu.measure_product, device) for device in gpus}
    copies: dict[str, Look] = {device: partial(gpu.measure_copy, device) for device in gpus}
    return products, copies


def _count(n_seen: int, n_asked: int) -> Check:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    measured = f"{n_seen} visible (CUDA_VISIBLE_DEVICES={visible})"
    return as_check("devices", n_seen >= n_asked, measured, f"{n_asked}")


def _slowest(values: Sequence[float | None]) -> float | None:
    return None if None in values else min(v for v in values if v is not None)


def _with_other_tasks(report: HealthReport) -> HealthReport:
    """Whether the tasks can add up numbers together, and which of them are on a bad node."""
    import torch

    from carbs.launchers.job.distributed import local_device, process_group

    device = local_device()
    n = task()[1]
    expected = f"the sum over {n} tasks"
    try:
        with process_group(device, timeout_s=RENDEZVOUS_S, meeting=1) as world:
            numbers = torch.full((2**18,), float(world.rank + 1), device=device)
            healthy = torch.zeros(n, device=device)
            healthy[world.rank] = float(report.is_healthy)
            world.add([numbers, healthy])
            n_wrong = int((numbers != n * (n + 1) / 2).sum())
            check = as_check("collectives", n_wrong == 0, f"{n_wrong} wrong elements", expected)
            unfit = tuple(rank for rank in range(n) if healthy[rank] != 1)
    except TaskLostError as error:
        check = as_check("collectives", False, "".join(str(error).splitlines()[:1]), expected)
        unfit = ()
    return report.model_copy(update={"checks": (*report.checks, check), "unfit_ranks": unfit})
