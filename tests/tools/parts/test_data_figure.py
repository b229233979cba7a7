"""The histogram of images per identity."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from tools.parts.data_figure import draw_histogram


@pytest.mark.parametrize("counts", [[1, 2, 3, 4, 4, 5, 6], [2, 2, 3, 3, 3], [5] * 30 + [6] * 20, [100, 120, 130]])
def test_the_ticks_of_counts_are_whole_numbers(counts, monkeypatch):
    figures, file, save = [], io.BytesIO(), Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *given, **more: figures.append(self) or save(self, *given, **more)
    )
    draw_histogram(np.array(counts), file)
    assert file.getvalue()[:4] == b"\x89PNG"
    (axes,) = figures[0].axes
    for axis in (axes.xaxis, axes.yaxis):
        ticks = [(t.get_loc(), t.label1.get_text()) for t in (*axis.get_major_ticks(), *axis.get_minor_ticks())]
        shown = [(place, text) for place, text in ticks if text]
        assert len(shown) >= 2
        assert all(text == f"{place:,.0f}" and place == round(place) for place, text in shown)
