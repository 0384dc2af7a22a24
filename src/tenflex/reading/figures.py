"""Figures and their colours. They need the extra `plot`."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


OURS, RIVAL, THIRD, GREY = "#0072b2", "#d55e00", "#009e73", "#767676"
"""Colours that all readers tell apart (Okabe and Ito), in print too."""


RESOLUTION = 200
"""Dots per inch of bitmaps."""


CURVE_POINTS = 401
"""Points of a curve, many more than it has pieces."""


class PlotsUnavailableError(ImportError):
    """Raised where a figure is asked for and matplotlib is missing."""


def blank_figure(width: float, height: float) -> Figure:
    """A figure of its own, in inches; pyplot, which keeps global state and may open windows, is left alone."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PlotsUnavailableError(
            f"plots need matplotlib, which cannot be imported ({error}): pip install 'tenflex[plot]'"
        ) from None

    class Shown(Figure):
        """A notebook shows what it finds this method in, without pyplot."""

        def _repr_svg_(self) -> str:
            text = StringIO()
            self.savefig(text, format="svg")
            return text.getvalue()

    return Shown(figsize=(width, height), layout="constrained")


def write_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure, in a folder that is made if it is not there; the ending of the path chooses the format."""
    Path(path).absolute().parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=RESOLUTION)
