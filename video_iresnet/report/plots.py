"""Small plots as SVG elements for a page, whose colours are the page's own variables.

The same values give the same bytes. matplotlib is imported where a plot is drawn, as a training needs none.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup, escape

from ..engine.aggregate import Numbers

# What matplotlib is told -> the variable of the page that stands there.
INK, FAINT = "#010203", "#010204"
SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")
VARIABLES = {INK: "--ink", FAINT: "--faint"} | {color: f"--series-{i}" for i, color in enumerate(SERIES, 1)}
MARKERS, STYLES = "osD^vP", ("-", "--", ":", "-.")
NARROW, WIDE = 4.8, 9.6  # inches
LONGEST = 36  # characters in a legend
RIGHT, WRONG = (59, 130, 246), (234, 88, 12)  # the colours of the cells of a matrix
OPACITY = 0.65  # of a full cell with a number on it, which can be read then


class Line(NamedTuple):
    """A line of a plot: its name, and its points."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    has_markers: bool = True


def lines(name: str, about: str, drawn: Sequence[Line], x_label: str, y_label: str) -> Markup:
    """Draw lines over one another. `name`: unique on the page. `about`: what a screen reader says."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for i, line in enumerate(drawn):
            axes.plot(line.x, line.y, linewidth=1.5, label=_label(line), **_look(i, line.has_markers))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if "percent" in y_label:
            axes.set_ylim(top=min(axes.get_ylim()[1], 100.4))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color=FAINT, linewidth=0.5)
        if len(drawn) > 1:
            longest = max(len(_label(line)) for line in drawn)
            figure.legend(loc="outside upper center", ncols=2 if longest <= LONGEST / 2 else 1, frameon=False)

    return _svg(name, about, draw, NARROW, 3.0 + 0.2 * len(drawn))


def ranks(name: str, about: str, drawn: Sequence[Line], y_label: str) -> Markup:
    """Draw values by rank, from the best class to the worst."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        for i, line in enumerate(drawn):
            axes.step(line.x, line.y, where="mid", linewidth=1.5, label=_label(line), **_look(i, False))
        axes.fill_between(drawn[0].x, drawn[0].y, step="mid", color=SERIES[0], alpha=0.2, linewidth=0)
        axes.set(xlabel="classes, from the most to the least accurate", ylabel=y_label, ylim=(0, 101))
        axes.grid(color=FAINT, linewidth=0.5)
        axes.margins(x=0)
        figure.legend(loc="outside upper right", ncols=2, frameon=False)

    return _svg(name, about, draw, WIDE, 3.2)


def matrix(name: str, about: str, fractions: Numbers) -> Markup:
    """Draw (K, K) fractions as a picture of a pixel per cell, under a scale. Colours go with the square root
    of a fraction, so that rare mistakes can be seen.
    """
    size = len(fractions)

    def draw(figure: Any) -> None:
        layout = [["right", "wrong"], ["cells", "cells"]]
        axes = figure.subplot_mosaic(layout, height_ratios=[0.25, 8.8])
        ramp = np.linspace(0, 1, 256)[None, :]
        for key, color, text in (("right", RIGHT, "right"), ("wrong", WRONG, "taken for another class")):
            axes[key].imshow(_cells(ramp**2, color), aspect="auto", extent=(0, 1, 0, 1), interpolation="none")
            percents = (0, 1, 5, 20, 50, 100)
            axes[key].set(yticks=[], xlabel=f"percent of a class's videos: {text}")
            axes[key].set_xticks([(percent / 100) ** 0.5 for percent in percents], map(str, percents))
        picture = _cells(fractions, WRONG)
        diagonal = np.arange(size)
        picture[diagonal, diagonal] = _cells(np.diagonal(fractions), RIGHT)
        axes["cells"].imshow(picture, interpolation="none")
        ticks = range(0, size, next(step for step in (5, 10, 20, 25, 50, 100, size) if size / step <= 20))
        axes["cells"].set(xticks=ticks, yticks=ticks, xlabel="predicted class", ylabel="class of the video")
        axes["cells"].tick_params(top=True, labeltop=True, right=True, labelright=True)

    return _svg(name, about, draw, WIDE, 10.4)


def _label(line: Line) -> str:
    """Return the name of a line as a legend shows it, cut in the middle if it is long."""
    name = line.name
    if len(name) > LONGEST:
        name = f"{name[: LONGEST // 2 - 1]}...{name[-LONGEST // 2 + 2 :]}"
    return f"\u200b{name}" if name.startswith("_") else name  # matplotlib would hide it


def _look(i: int, has_markers: bool) -> dict[str, Any]:
    """Return how the line number `i` of a plot looks; the first 24 look different."""
    size = len(SERIES)
    look = {"color": SERIES[i % size], "linestyle": STYLES[i // size % len(STYLES)]}
    return look | {"marker": MARKERS[i % size] if has_markers else "", "markersize": 4}


def _cells(fractions: Numbers, color: tuple[int, int, int]) -> Numbers:
    """(...) fractions -> (..., 4) red, green, blue and opacity in uint8; nothing is transparent."""
    opacity = np.round(255 * np.sqrt(fractions)).astype(np.uint8)
    return np.stack([*(np.full_like(opacity, value) for value in color), opacity], -1)


def _svg(name: str, about: str, draw: Callable[[Any], None], width: float, height: float) -> Markup:
    """Return what `draw` makes of a figure of this size in inches, as an element for a page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False, "font.size": 11,
        "axes.unicode_minus": False, "axes.spines.top": False, "axes.spines.right": False,
        "axes.facecolor": "none", "axes.edgecolor": INK, "axes.labelcolor": INK, "text.color": INK,
        "xtick.color": INK, "ytick.color": INK, "svg.image_inline": True,
    }  # fmt: skip
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # the browser has others
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        figure: Any = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
        FigureCanvasSVG(figure)
        draw(figure)
        file = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return _for_a_page(file.getvalue(), name, about, "wide" if width > NARROW else "narrow")


def _for_a_page(text: str, name: str, about: str, kind: str) -> Markup:
    """Make a file of matplotlib an element: the page's colours and font, and no ids that other elements of
    the page may have.
    """
    start, body = text[text.index("<svg") :].split(">", 1)
    box = start[start.index("viewBox") :].split(" xmlns")[0]
    body = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    body = re.sub(r'(<text style="[^"]*?)font-family: [^"]*?sans-serif;? ?', r"\1", body)
    used = set(re.findall(r'(?:url\(|href=")#(\w+)', body))
    body = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", body)
    for color, variable in VARIABLES.items():
        body = body.replace(color, f"var({variable})")
    return Markup(f'<svg class="{kind}" role="img" aria-label="{escape(about)}" {box}>{body.rstrip()}')
