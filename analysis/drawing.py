"""What all charts share: the page's colours, the house's style, and a figure as an element of the page.

Pure: equal figures give equal bytes.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

#: Colours that the page's style defines, for light and dark; the numbers only mark the place of each in the SVG.
INK, GRID, OWN, OTHER, CEILING, POINT, PAPER = (f"#00000{n}" for n in range(1, 8))
_VARIABLES = {INK: "ink", GRID: "grid", OWN: "own", OTHER: "other", CEILING: "ceiling", POINT: "point", PAPER: "paper"}

_STYLE: Mapping[Any, Any] = {
    "savefig.format": "svg",
    "figure.dpi": 72,  # an SVG's own: the layout measures what is drawn
    "svg.hashsalt": "brim",  # ids depend on what is drawn, not on chance
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "text.parse_math": False,
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "errorbar.capsize": 3,
}
_NO_METADATA = {"Creator": None, "Date": None, "Format": None, "Type": None}

#: More marks than this are not told apart any more, and would only make the page larger.
MOST_MARKS = 300


@contextlib.contextmanager
def canvas(height: float) -> Iterator[Figure]:
    """A figure of the page's width in the house's style, whatever this user's matplotlibrc says."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield Figure(figsize=(6.6, height))


def svg(figure: Figure, label: str) -> Markup:
    """The drawing as an element of the page: no declaration, no style of its own, colours and font by the page."""
    written = io.StringIO()
    ConstrainedLayoutEngine().execute(figure)  # as the figure's own, it would have all drawn twice
    figure.savefig(written, transparent=True, metadata=_NO_METADATA)
    text = written.getvalue()
    text = text[text.index("<svg") :]
    box = re.search(r'viewBox="[^"]*"', text)
    body = text[text.index(">") + 1 :]
    body = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", body, count=1, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)  # names of parts, equal in every chart; nothing refers to them
    body = re.sub(r"; font-family: [^;\"]*", "", re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", body))
    for mark, name in _VARIABLES.items():
        body = body.replace(mark, f"var(--{name})")
    return Markup(f'<svg role="img" aria-label="{escape(label)}" {box[0] if box else ""}>{body}')
