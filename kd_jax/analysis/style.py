"""The look of every figure: colours, lines and markers that stay distinct in grey and in print, and how one is saved.

figure = new_figure(width=6, height=3)
look = ROLES["augmented"]
figure.subplots().plot(x, y, color=look.color, linestyle=look.line, marker=look.marker)
save(figure, [{"x": 0, "y": 1.5}], Path("figures/curve"))         # curve.png, curve.svg and curve.csv
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from PIL import Image

from kd_jax.files import write_atomically

# The palette of Okabe and Ito (2008), which readers with any colour vision tell apart, without black and yellow.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
INK, GRID, MUTED = "#222222", "#D9D9D9", "#8C8C8C"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", "p", ">", "h")
HATCHES = ("", "////", "....", "\\\\\\\\", "xxxx", "")
SEQUENTIAL, DIVERGING = "Blues", "PuOr"  # colour maps of matrices: magnitudes, and changes around 0
DOTS_PER_INCH = 130
_SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # matplotlib ships it, so that a figure looks the same everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "svg.fonttype": "path",  # the text has the same size in every viewer
    "svg.hashsalt": "kd_jax",  # equal figures are equal files
    "hatch.linewidth": 0.6,
}


class Look(NamedTuple):
    """How a run is drawn: colours differ in lightness, and lines and markers differ as well."""

    color: str
    line: str | tuple
    marker: str


ROLES = {
    "teacher": Look("#009E73", (0, (1, 1)), "^"),
    "vanilla": Look("#E69F00", (0, (4, 1.5)), "s"),
    "augmented": Look("#0072B2", "-", "o"),
    "two_stream": Look("#CC79A7", (0, (6, 1.5, 1, 1.5)), "D"),
    "other": Look(MUTED, (0, (2, 2)), "x"),
}


def new_figure(width: float, height: float) -> Figure:
    """Makes an empty figure in this style; `width` and `height` are in inches."""
    with matplotlib.rc_context(_SETTINGS):
        return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def styled(function):
    """Decorates a function that draws: the style applies while it runs, and the settings of the caller stay."""
    return matplotlib.rc_context(_SETTINGS)(function)


def readable(name: str) -> str:
    """Returns the name of a class or run with spaces instead of underscores."""
    return name.replace("_", " ")


def write_panel_title(axis: Axes, title: str, note: str = "") -> None:
    """Writes a bold title at the left of a panel, and a note in plain type at the right."""
    axis.set_title(title, loc="left")
    axis.set_title(note, loc="right", fontweight="normal", fontsize=8.5)


def write_legend_and_caption(figure: Figure, axis: Axes, caption: str) -> None:
    """Writes the meaning of the markers of a panel above all panels, and a caption below them."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=len(labels), handletextpad=0.2)
    figure.supxlabel(caption, fontsize=8.5)


def save(figure: Figure, table: Sequence[Mapping[str, object]], path: Path) -> None:
    """Writes `path`.png, `path`.svg and, with the numbers of the figure, `path`.csv, each file whole or not at all.

    Args:
      table: rows {column: value}; the columns of the file are those of all rows, in the order of their first use.
      path: without a suffix; a local path or one in a bucket. Dots in the name are kept.
    """
    png, svg = io.BytesIO(), io.BytesIO()
    with matplotlib.rc_context(_SETTINGS):  # Figure.savefig would draw and place everything twice for each file
        figure.set_dpi(DOTS_PER_INCH)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        figure.set_layout_engine("none")  # everything has its place
        # Equal figures are equal files.
        FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    image = image.quantize(256, Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)  # a third of the bytes
    image.save(png, "png", optimize=True)
    for suffix, content in {"png": png, "svg": svg}.items():
        write_atomically(path.with_name(f"{path.name}.{suffix}"), content.getvalue())
    write_atomically(path.with_name(f"{path.name}.csv"), as_csv(table).encode())


def as_csv(table: Sequence[Mapping[str, object]]) -> str:
    """Returns rows as CSV: a header, numbers of at most 6 digits, and nothing for a value that is NaN or missing."""
    columns = list(dict.fromkeys(column for row in table for column in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_cell(row.get(column)) for column in columns] for row in table])
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return "" if value is None else value
