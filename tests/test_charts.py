"""Law figures: what an axis cannot hold is marked, limits stand apart with their intervals, a recipe has one colour."""

from __future__ import annotations

import math

import pytest

from dataeff.reports.charts import Axis, chart_bytes, law_figure, ratio_figure, round_numbers, save_chart
from dataeff.reports.theme import themed

RECIPES = ["standard", "ensemble", "joint"]
SIZES = Axis("n", "parameters")


def points(recipe: str, losses: list[float], **more) -> list[dict]:
    return [{"layer": "point", "recipe": recipe, "n": 10.0 * 2**i, "val_loss": loss, **more} for i, loss in enumerate(losses)]


def drawn(figure, layer: str) -> list[dict]:
    return [row for panel in figure["concat"] for row in panel["data"]["values"] if row["layer"] == layer]


def y_domain(figure, panel: int = 0) -> list[float]:
    channels = [layer["encoding"] for layer in figure["concat"][panel]["layer"]]
    return next(each["y"]["scale"]["domain"] for each in channels if "scale" in each.get("y", {}))


def test_a_single_member_far_above_does_not_stretch_the_axis_and_is_marked_with_its_true_loss():
    rows = points("ensemble", [3.4, 3.3, 3.2]) + points("standard", [3.6, 3.5, 3.45])
    rows += [{"layer": "curve", "recipe": "ensemble", "line": "a", "n": 10.0, "val_loss": loss} for loss in (6.0, 3.5)]
    figure = law_figure(rows, SIZES, RECIPES)
    assert y_domain(figure)[1] < 3.8
    (mark,) = drawn(figure, "off")
    assert mark["val_loss"] == 6.0 and mark["shape"] == "triangle-up" and not mark["endless"]
    assert y_domain(figure)[0] < mark["at"] < y_domain(figure)[1]


@pytest.mark.parametrize(("high", "endless"), [(5e6, [False]), (None, [True]), (3.2, [])])
def test_an_interval_that_ends_far_off_and_one_without_end_have_marks_of_their_own(high, endless):
    rows = [{"recipe": "joint", "seed_tokens": 2**i, "ratio": 2.0 + i, "low": 1.9 + i, "high": 2.1 + i} for i in range(3)]
    figure = ratio_figure([*rows, {"recipe": "ensemble", "seed_tokens": 4, "ratio": 3.0, "low": 2.8, "high": high}], RECIPES)
    marks = drawn(figure, "off")
    assert [mark["endless"] for mark in marks] == endless
    assert all(mark.get("high") == high for mark in marks)  # what the tooltip shows
    assert ("triangles" in figure["description"]) == bool(endless)


def test_limits_stand_side_by_side_right_of_the_data_with_their_intervals():
    rows = points("standard", [3.6, 3.5, 3.45]) + points("joint", [3.4, 3.3, 3.2])
    rows += [{"layer": "limit", "recipe": name, "val_loss": 3.0, "low": 0.0, "high": 3.1} for name in ("joint", "standard")]
    figure = law_figure(rows, SIZES, RECIPES)
    limits = {row["recipe"]: row for row in drawn(figure, "limit")}
    (edge,) = drawn(figure, "edge")
    assert 40 < edge["n"] < limits["standard"]["n"] < limits["joint"]["n"]
    assert all(row["low"] == 0.0 and row["bottom"] == y_domain(figure)[0] and row["top"] == 3.1 for row in limits.values())


def test_solid_is_within_the_data_and_dashed_beyond():
    rows = points("joint", [3.4, 3.3, 3.2])
    rows += [{"layer": layer, "recipe": "joint", "line": "l", "n": 40.0, "val_loss": 3.2} for layer in ("law", "beyond")]
    layers = law_figure(rows, SIZES, RECIPES)["concat"][0]["layer"]
    dashes = {layer["transform"][0]["filter"]: layer["mark"].get("strokeDash") for layer in layers}
    assert dashes["datum.layer == 'law'"] is None and dashes["datum.layer == 'beyond'"] == [5, 4]


def test_a_recipe_has_one_colour_whatever_else_is_drawn_on_light_and_dark_pages():
    def colour_of(recipe, *names, dark=False):
        spec = themed(law_figure([row for name in names for row in points(name, [3.0])], SIZES, RECIPES), dark)
        scale = next(layer["encoding"]["color"]["scale"] for layer in spec["concat"][0]["layer"] if "color" in layer["encoding"])
        return scale["range"][scale["domain"].index(recipe)]

    assert colour_of("joint", "joint") == colour_of("joint", "standard", "joint", dark=True) != colour_of("standard", "standard")


def test_ticks_are_the_budgets():
    budgets = [4096, 8192, 16384]
    rows = [{"recipe": name, "seed_tokens": tokens, "ratio": 1.5} for name in RECIPES for tokens in budgets]
    axis = ratio_figure(rows, RECIPES)["concat"][0]["layer"][-1]["encoding"]["x"]["axis"]
    assert axis["values"] == budgets and "format(datum.value, ',')" in axis["labelExpr"]


@pytest.mark.parametrize("ends", [(0.85, 1.8), (0.3, 7000.0), (3.0, 3.2), (2e4, 3e6)])
def test_round_numbers_are_few_and_within(ends):
    numbers = round_numbers(*ends)
    assert 2 < len(numbers) < 16 and all(ends[0] <= number <= ends[1] for number in numbers)


def test_each_panel_has_its_own_axis_and_a_narrow_page_one_panel_a_row():
    rows = points("joint", [5.0, 4.9], panel="a") + points("joint", [3.4, 3.3], panel="b")
    figure = law_figure(rows, SIZES, RECIPES)
    assert y_domain(figure)[0] > y_domain(figure, 1)[1]
    narrow = themed(figure, narrow=True)
    assert narrow["columns"] == 1 < figure["columns"] and all(panel["width"] < 300 for panel in narrow["concat"])


def test_a_figure_is_saved_with_its_caption(tmp_path):
    figure = law_figure(points("joint", [3.4, math.pi]), SIZES, RECIPES)
    save_chart(figure, tmp_path / "f.svg")
    assert "Dots: measured, hollow" in (tmp_path / "f.svg").read_text()
    assert chart_bytes(themed(figure), "png").startswith(b"\x89PNG")


def test_the_last_budget_is_no_infinity():
    rows = points("joint", [3.4, 3.3])
    rows += [{"layer": "limit", "recipe": "joint", "val_loss": 3.0}]
    axis = law_figure(rows, Axis("n", "D", [10, 25]), RECIPES)["concat"][0]["layer"][-1]["encoding"]["x"]["axis"]
    edge = float(axis["labelExpr"].split()[2])
    assert axis["values"][1] == 25 < edge < axis["values"][2]
