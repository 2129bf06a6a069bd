"""carbs: a cost-aware hyperparameter and scaling-law optimizer for training language models.

What it offers stands in ``__init__.pyi``, and is loaded when it is first used.
"""

from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    try:
        return _load(name)
    except AttributeError:
        from carbs.from_imbue import NAMES, where

        if name in NAMES:
            # As an AttributeError "from carbs import ..." would hide what it says.
            raise ImportError(where(name, NAMES)) from None
        raise
