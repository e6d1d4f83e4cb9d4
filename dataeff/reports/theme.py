"""How charts look: one place for colours, fonts and sizes, so that the page, the report and a notebook agree.

Colours are Okabe and Ito's, which colour-blind readers can tell apart (https://jfly.uni-koeln.de/color/). They are
given to recipes in the order of the study, so that a recipe keeps its colour from chart to chart.
"""

from __future__ import annotations

from collections.abc import Sequence

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
FONT = "Helvetica, Arial, sans-serif"


def recipe_colours(recipes: Sequence[str]) -> dict[str, str]:
    """Return a colour for each recipe, in order; colours repeat after seven."""
    return {recipe: PALETTE[i % len(PALETTE)] for i, recipe in enumerate(recipes)}


def light() -> dict[str, object]:
    """Return the Vega-Lite config of charts on a white page."""
    return {
        "background": "white",
        "font": FONT,
        "axis": {"labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": "normal", "gridColor": "#e8e8e8", "domain": False},
        "header": {"labelFontSize": 12, "titleFontSize": 12},
        "legend": {"labelFontSize": 12, "titleFontSize": 12, "orient": "top", "titleFontWeight": "normal"},
        "title": {"fontSize": 14, "anchor": "start", "fontWeight": "normal", "subtitleFontSize": 12, "subtitleColor": "#555555"},
        "view": {"stroke": None},
    }
