"""What a notebook shows by itself: the summary as a table, and in words what it rests on."""

from __future__ import annotations

import html

import pandas as pd


class Shown:
    """For classes with a :meth:`summary`, and maybe ``fitted_to`` and ``doubts``."""

    def summary(self) -> pd.DataFrame:
        raise NotImplementedError

    def _repr_html_(self) -> str:
        table = self.summary()
        said = [f"{type(self).__name__}, {getattr(self, 'fitted_to', '')}".rstrip(", ")]
        said += getattr(self, "doubts", ())
        words = "".join(f"<p>{html.escape(sentence)}</p>" for sentence in said)
        return words + str(table.to_html(index=False, float_format=lambda x: f"{x:.4g}"))
