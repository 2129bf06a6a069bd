"""What a run may spend: FLOPs, GPU-hours or money, and what failures take of it.

Peak rates are the makers' for dense BF16 (FP16 where there is no BF16) matrix products, from their
data sheets; memory likewise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class GPU:
    """A device: ``peak_flops`` a second, dense, and ``memory_gib``."""

    peak_flops: float
    memory_gib: float


GPUS = {
    "V100": GPU(125e12, 32),
    "A100": GPU(312e12, 80),
    "A10": GPU(125e12, 24),
    "A10G": GPU(70e12, 24),
    "A40": GPU(150e12, 48),
    "L4": GPU(121e12, 24),
    "L40S": GPU(362e12, 48),
    "RTX 3090": GPU(71e12, 24),
    "RTX 4090": GPU(165e12, 24),
    "H100": GPU(989e12, 80),
    "H100 PCIe": GPU(756e12, 80),
    "H100 NVL": GPU(835e12, 94),
    "H200": GPU(989e12, 141),
    "GH200": GPU(989e12, 96),
    "B200": GPU(2250e12, 180),
    "MI300X": GPU(1307e12, 192),
}


@dataclass(frozen=True)
class Failures:
    """How often a large run is interrupted, and what that costs.

    Attributes:
        per_hour_per_1000_gpus: by default that of Llama 3 405B: 419 unexpected interruptions in 54
            days on 16,384 GPUs (Dubey et al. 2024, arXiv 2407.21783, sec. 3.3.4).
        minutes_to_resume: from the failure to the first new step; by default the 15 minutes within
            which MegaScale is back (Jiang et al. 2024, arXiv 2402.15627, sec. 6.3).
        checkpoint_minutes: between checkpoints; half of it is lost on average. By default 30, an
            assumption.
    """

    per_hour_per_1000_gpus: float = 419 / (54 * 24 * 16.384)
    minutes_to_resume: float = 15.0
    checkpoint_minutes: float = 30.0

    def overhead(self, n_gpus: int) -> float:
        """Time with failures over time without: ``1 / (1 - rate * loss)``, to first order.

        Young 1974, "A first order approximation to the optimum checkpoint interval".

        Raises:
            ValueError: failures take all of the time.
        """
        rate = self.per_hour_per_1000_gpus * n_gpus / 1000
        lost = rate * (self.minutes_to_resume + self.checkpoint_minutes / 2) / 60
        if lost >= 1:
            raise ValueError(
                f"{rate:.2g} failures an hour on {n_gpus} GPUs take all of the time: checkpoint "
                f"more often than every {self.checkpoint_minutes:g} minutes, or resume faster"
            )
        return 1 / (1 - lost)


@dataclass(frozen=True)
class Budget:
    """What was asked for, in every unit in which that is known; NaN where it is not.

    Attributes:
        flops: of useful work.
        gpu_hours: rented, failures included.
        hours: of the wall clock, on ``n_gpus``.
        failures_share: of the rented time.
        money: in the unit of the price.
    """

    flops: float
    gpu_hours: float
    hours: float
    failures_share: float
    money: float

    @classmethod
    def of(
        cls,
        *,
        flops: float | None = None,
        gpu_hours: float | None = None,
        money: float | None = None,
        gpu: str = "H100",
        n_gpus: int = 1,
        utilisation: float = 0.4,
        price_per_gpu_hour: float | None = None,
        failures: Failures | None = None,
    ) -> Budget:
        """From one of FLOPs, GPU-hours and money to the others.

        Args:
            flops, gpu_hours, money: exactly one of them, positive.
            gpu: one of ``GPUS``.
            n_gpus: that run at once.
            utilisation: of the GPU's peak rate while it trains, in (0, 1]; the default of 0.4 is
                what Llama 3 405B reached (38 to 43%, table 4 of its report).
            price_per_gpu_hour: needed for money.
            failures: of the machines.

        Raises:
            ValueError: says which of these is wrong.
        """
        given = {"flops": flops, "gpu_hours": gpu_hours, "money": money}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"give one of flops, gpu_hours and money, not {sorted(given)}")
        ((name, amount),) = given.items()
        assert amount is not None
        if not (math.isfinite(amount) and amount > 0):
            raise ValueError(f"{name} is {amount}, expected a positive, finite number")
        if gpu not in GPUS:
            raise ValueError(f"gpu {gpu!r} is none of {sorted(GPUS)}")
        if not 0 < utilisation <= 1:
            raise ValueError(f"utilisation is {utilisation}, expected a share above 0, up to 1")
        if n_gpus < 1:
            raise ValueError(f"n_gpus is {n_gpus}, expected at least 1")
        if price_per_gpu_hour is not None and not price_per_gpu_hour > 0:
            raise ValueError(f"price_per_gpu_hour is {price_per_gpu_hour}, expected it positive")
        overhead = (failures or Failures()).overhead(n_gpus)
        flops_an_hour = 3600 * GPUS[gpu].peak_flops * utilisation
        if money is not None:
            if price_per_gpu_hour is None:
                raise ValueError("a budget in money needs price_per_gpu_hour")
            gpu_hours = money / price_per_gpu_hour
        if gpu_hours is not None:
            flops = gpu_hours / overhead * flops_an_hour
        assert flops is not None
        hours_in_all = flops / flops_an_hour * overhead
        price = math.nan if price_per_gpu_hour is None else price_per_gpu_hour
        share = 1 - 1 / overhead
        return cls(flops, hours_in_all, hours_in_all / n_gpus, share, hours_in_all * price)
