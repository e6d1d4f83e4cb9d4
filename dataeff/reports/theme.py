"""How charts look: one place for colours, fonts and sizes, so that the page, the report and a notebook agree.

Colours are Okabe and Ito's, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/). They are
given to recipes in the order of the study, so that a recipe keeps its colour from chart to chart. Black, which no dark page
shows, is a grey here; a violet and a darker yellow follow for studies of more recipes.
"""

from __future__ import annotations

from collections.abc import Sequence

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C8C8C", "#7A4F9A", "#B8A800")
FONT = "Helvetica, Arial, sans-serif"


def recipe_colours(recipes: Sequence[str]) -> dict[str, str]:
    """Return a colour for each recipe, in order; colours repeat after nine."""
    return {recipe: PALETTE[i % len(PALETTE)] for i, recipe in enumerate(recipes)}


def page_colour(dark: bool) -> str:
    """Return the colour charts are drawn on."""
    return "#171614" if dark else "#ffffff"


def faint(dark: bool) -> str:
    """Return the colour of what is not to be looked at first."""
    return "#b0b0b0" if dark else "#555555"


def chart_config(dark: bool = False) -> dict[str, object]:
    """Return the Vega-Lite config of charts on a white or a dark page; every colour is set, none left to the page."""
    ink, lines = ("#eeeeee", "#3a3a3a") if dark else ("#1a1a1a", "#e8e8e8")
    labels = {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelColor": ink, "titleColor": ink}
    return {
        "background": page_colour(dark),
        "font": FONT,
        "axis": {**labels, "labelFontSize": 11, "gridColor": lines, "tickColor": faint(dark), "domain": False},
        "legend": {**labels, "orient": "top"},
        "title": {
            "fontSize": 14,
            "anchor": "start",
            "fontWeight": "normal",
            "color": ink,
            "subtitleFontSize": 12,
            "subtitleColor": faint(dark),
        },
        "view": {"stroke": None},
    }
