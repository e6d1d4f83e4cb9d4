"""How charts look: one place for colours, fonts and sizes, so that pages, reports and notebooks agree.

Colours are Okabe and Ito's, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/), black replaced by a
grey, and two more. They go to recipes in the order of the study, so that a recipe has one colour in every chart, on light and
dark pages. A chart is a Vega-Lite specification that names LINES and PAPER; `themed` says what these are.
"""

from collections.abc import Iterable
from itertools import cycle
from typing import Any

from altair import SCHEMA_URL

Chart = dict[str, Any]
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C", "#7A4F9A", "#B8A800")
GREY, ALARM, FONT = PALETTE[6], PALETTE[1], "Helvetica, Arial, sans-serif"
LINES, PAPER = {"expr": "lines"}, {"expr": "paper"}
LIGHT = {"ink": "#1a1a1a", "faint": "#555555", "lines": "#e0e0e0", "paper": "#ffffff"}
DARK = {"ink": "#eeeeee", "faint": "#b0b0b0", "lines": "#3a3a3a", "paper": "#171614"}
NARROW = 244  # width of a panel that fits a phone beside its axis (pixels)


class Figure(Chart):
    """A chart that notebooks show."""

    def _repr_mimebundle_(self, *_: Any, **__: Any) -> Chart:
        return {"application/vnd.vegalite.v6+json": self}


def palette(names: Iterable[str]) -> dict[str, str]:
    """Return names with their colours, in order; colours repeat after nine."""
    return dict(zip(dict.fromkeys(names), cycle(PALETTE), strict=False))


def themed(chart: Chart, dark: bool = False, narrow: bool = False) -> Figure:
    """Return the chart as it looks on a light or a dark page, every colour set; `narrow`: its panels below each other."""
    inks = DARK if dark else LIGHT
    ink, faint = inks["ink"], inks["faint"]
    labels = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelColor": ink, "titleColor": ink}
    config = {
        "background": inks["paper"],
        "font": FONT,
        "params": [{"name": name, "value": colour} for name, colour in inks.items()],
        "axis": {**labels, "labelFontSize": 11, "gridColor": inks["lines"], "tickColor": faint, "domain": False},
        "legend": {**labels, "orient": "top", "columns": 2 if narrow else 4, "symbolOpacity": 1, "labelLimit": 300},
        "header": {**labels, "labelFontSize": 13, "labelAnchor": "start", "title": None},
        "title": {"anchor": "start", "frame": "group", "fontWeight": "normal", "color": ink, "subtitleColor": faint},
        "view": {"stroke": None},
    }
    below = {"concat": [{**panel, "width": NARROW} for panel in chart["concat"]], "columns": 1} if narrow else {}
    return Figure({"$schema": SCHEMA_URL, "autosize": {"type": "pad"}, **chart, **below, "config": config})
