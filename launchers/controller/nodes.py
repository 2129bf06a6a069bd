"""The machines of a sweep: which it keeps away from, and how fast each of them is."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from carbs.launchers.controller.ledger import Ledger
from carbs.launchers.job.files import Start
from carbs.launchers.job.process import read_health

EXCLUDED = "excluded_nodes"


class Nodes:
    """Nodes that were found broken are kept in the study, each with the evidence, for a while.

    Args:
        ledger: of the study.
        health_folder: where jobs leave what they found of their nodes.
        exclude_for_s: how long no job is sent to a broken node.
        clock: Unix time.
    """

    def __init__(
        self,
        ledger: Ledger,
        health_folder: Path,
        exclude_for_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._ledger = ledger
        self._health_folder = health_folder
        self._exclude_for_s = exclude_for_s
        self._clock = clock
        self._nodes: dict[str, dict[str, Any]] = {}

    def refresh(self) -> None:
        """Read what is kept in the study."""
        study = self._ledger.study
        self._nodes = dict(study.user_attrs.get(EXCLUDED, {}))

    def add(self, node: str, reason: str) -> None:
        """Keep away from a node, longer each time that it is found broken again."""
        self.refresh()
        times = self._nodes.get(node, {}).get("times", 0) + 1
        now = self._clock()
        self._nodes[node] = {
            "reason": reason,
            "since": now,
            "until": now + self._exclude_for_s * 2 ** (times - 1),
            "times": times,
        }
        self._ledger.study.set_user_attr(EXCLUDED, self._nodes)

    def excluded(self) -> list[str]:
        """The nodes to keep away from now."""
        now = self._clock()
        return sorted(name for name, node in self._nodes.items() if node["until"] > now)

    def all(self) -> dict[str, dict[str, Any]]:
        """Every node that was ever found broken: reason, since, until (Unix times), times."""
        return dict(self._nodes)

    def normalised(self, start: Start | None, cost: float) -> tuple[float, dict[str, Any] | None]:
        """What a run would have cost on a machine of the usual speed, and how that was found.

        Args:
            start: of its job, with what the health check measured.
            cost: as measured.
        """
        if start is None or start.health is None:
            return cost, None
        from carbs.launchers.job.health import (
            MIN_EARLIER,
            HealthReport,
            normalised_cost,
            usual_speed,
        )

        report = HealthReport.model_validate(start.health)
        peers = [r for r in read_health(self._health_folder) if r.device == report.device]
        usual = usual_speed(report.device, peers) if len(peers) >= MIN_EARLIER else None
        normalised = normalised_cost(cost, report.speed, usual)
        return normalised, {
            "node": report.node,
            "device": report.device,
            "speed": report.speed,
            "usual_speed": usual,
            "measured_cost": cost,
            "normalised_cost": normalised,
        }
