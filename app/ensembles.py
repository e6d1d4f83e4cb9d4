"""The Ensembles page: the loss of K members and its limit, members against their average, and where on the grid each is best."""

from __future__ import annotations

import page
import streamlit as st

from dataeff.reports import ensembles as reports

SUGGESTION = """[recipes.joint]
base = "regularized"     # a recipe of the study; the search starts near its optimum
tune = ["weight_decay", "epochs"]
change = { epochs = "x 2", weight_decay = "x 0.5" }
objective = "K"          # tune for the limit of the members, not for one run
members = 4
limit = "K then N\""""


def show_grids(study: str, seed_tokens: int) -> None:
    """Show, of a cell tuned for the limit in K, the loss of one model and the limit at every grid point."""
    st.subheader("Optimum of one model and of ensembles")
    cells = {cell["cell_id"].split("/", 1)[1]: cell for cell in page.read(reports.tuned_cells, study, seed_tokens)}
    if not cells:
        st.info(f'No recipe of {study} was tuned for the limit in K at D = {seed_tokens:,} tokens. One with objective = "K" is:')
        st.code(SUGGESTION, "toml")
        return
    with st.container(horizontal=True):
        cell = cells[page.choose("Cell", list(cells), "cell", width=320)]
        points = page.read(reports.cell_losses, cell["cell_id"])
        panels = [point["panel"] for point in sorted(points, key=lambda point: not point["is_best"])]
        at = page.choose("At", list(dict.fromkeys(panels)), "at", width=320) if set(panels) != {""} else ""
    shown = [point for point in points if point["panel"] == at]
    where = f"{cell['recipe']}, D = {seed_tokens:,} tokens, {cell['size']}"
    title = f"{where}, {cell['members']} members, {cell['averaging']} averaged; {at}"
    run = [point for point in shown if point["state"] in ("run", "diverged")]
    page.show_chart(reports.grid_chart(shown, title), f"{study} grids", run)


study = page.choose_study()
choices = page.read(reports.ensemble_choices, study)
if not choices["recipe"]:
    st.info(f"No ensemble is recorded in {study}. A recipe with `members` makes them; tuned for their limit with `objective`:")
    st.code(SUGGESTION, "toml")
    st.stop()
with st.sidebar:
    chosen = st.multiselect("Recipe", choices["recipe"], key="recipe", bind="query-params")
    seed_tokens = page.choose("D (tokens)", choices["seed_tokens"], "D")
    sizes = st.multiselect("Size", choices["size"], key="size", bind="query-params")
    averaging = page.choose("Averaged", choices["averaging"], "averaging")

shown = page.read(reports.study_ensembles, study, seed_tokens, averaging, tuple(chosen), tuple(sizes))
points, curves, laws, recipes = (shown[name] for name in ("points", "curves", "laws", "recipes"))
if best := [point for point in points if point["is_best"]]:
    st.subheader(f"Ensembles at D = {seed_tokens:,} tokens, {averaging} averaged")
    page.show_chart(reports.members_chart(points, curves, laws, recipes), f"{study} members", curves)
    names = {"recipe": "recipe", "size": "size", "members": "K", "single": "one member", "val_loss": "K members",
             "limit_loss": "limit in K", "e_low": "90% from", "e_high": "to", "alpha": "exponent", "rmse": "rmse"}  # fmt: skip
    rows = [[*(point[name] for name in names), point["reason"] or point["interval_reason"]] for point in best]
    columns = [*names.values(), "no limit or interval because"]
    forms = {name: st.column_config.NumberColumn(format="%.1e" if name == "rmse" else "%.4f") for name in columns[3:10]}
    page.show_table(columns, rows, f"{study} ensembles", height="content", column_config=forms)
    st.caption("Losses in nats/token. The limit's interval is that of the jackknife over members.")
if points:
    page.show_chart(reports.average_chart(points, recipes), f"{study} average", points)
else:
    st.info("No ensemble is recorded under these choices.")
lines = [f"  {lack['recipe']}, {lack['size']}: {lack['reason']}" for lack in shown["missing"]]
lines = ["Cells that ask for an ensemble and have none:", *lines] if lines else []
if diverged := sum(point["val_loss"] is None for point in points):
    lines.insert(0, f"{diverged} ensembles are not drawn: the loss of their members is not finite.")
page.show_sentences(lines)
show_grids(study, seed_tokens)
