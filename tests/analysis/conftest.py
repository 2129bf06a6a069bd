"""Measurements that others published, where ``CARBS_DATA`` says they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

Published = Callable[[str], pd.DataFrame]


@pytest.fixture
def published() -> Published:
    folder = os.environ.get("CARBS_DATA")
    if not folder:
        pytest.skip("CARBS_DATA names no folder of published measurements")
    return lambda name: pd.read_csv(Path(folder) / name)
