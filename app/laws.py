"""The Laws page: the laws of a study over N, K or D in one figure and one table, and what tests one of them."""

from urllib.parse import quote

import page
import streamlit as st

from dataeff.records.queries import records
from dataeff.reports import laws as reports
from dataeff.reports.charts import law_figure, ratio_figure

study = page.choose_study()
with st.sidebar:
    over = page.choose("Laws over", ["N", "K", "D"], "over", st.segmented_control, required=True,
                       help="N: parameters, D fixed. K: members of an ensemble. D: seed tokens.")  # fmt: skip
    found = page.read(reports.study_laws, study, over)
    laws, order = found["laws"], found["recipes"]
    if over == "K" and laws:
        for name, label, key in (("seed_tokens", "D (tokens)", "D"), ("averaging", "Averaged", "averaging")):
            value = page.choose(label, sorted({law[name] for law in laws}, reverse=name == "seed_tokens"), key)
            laws = [law for law in laws if law[name] == value]
    chosen = page.choose("Recipes", list(dict.fromkeys(law["recipe"] for law in laws)), "recipe", st.multiselect)
    laws = [law for law in laws if not chosen or law["recipe"] in chosen]
if not laws:
    lack = {"N": 'no recipe takes its limit in N, limit = "N"', "K": "no ensemble of members is recorded", "D": "it has no cells"}
    st.info(f"{page.plain(study)} has no law over {over}: {lack[over]}.")
    st.stop()
st.subheader(f"Laws over {reports.TITLES[over]}")
rows = page.linked(reports.law_rows(laws, found["points"], over))
title = "limit of the recipe (nats/token)" if over == "D" else "validation loss (nats/token)"
shown = {law["name"]: law for law in laws}
across = reports.axis([point for point in found["points"] if point["name"] in shown], over)
if any(row["layer"] == "point" for row in rows):
    figure = law_figure(rows, across, order, y_title=title)
    page.show_chart(figure, f"{study} laws over {over}", [row for row in rows if row["layer"] in ("point", "limit")])
ratios = page.read(records, reports.RATIOS, [study]) if over == "D" else []
if ratios := [row for row in ratios if not chosen or row["recipe"] in chosen]:
    page.show_chart(ratio_figure(ratios, order), f"{study} ratios", ratios)
page.show_table(*reports.law_table(laws), f"{study} laws over {over} table", height="content")

law = shown[page.choose("What tests the law of", list(shown), "law", width=420)]
tests = reports.law_tests(law, found["points"], over)
if tests["rows"]:
    page.show_chart(law_figure(tests["rows"], across, order, y_title=title), f"{study} law", tests["points"][1])
st.markdown(page.plain(tests["sentence"]))
notes = {"points": "Residual: loss less law; none where the law passes through every point.",
         "rivals": "Other forms on the same points. Held-out error: each left out in turn. The least AICc is best."}  # fmt: skip
for name, note in notes.items():
    if tests[name][1]:
        page.show_table(*tests[name], f"{study} law {name}", height="content")
        st.caption(note)
if law["run_ids"]:
    with st.expander(f"{len(law['run_ids'])} runs it rests on"):
        st.markdown("  \n".join(f"[{run_id}]({page.address('runs', run=quote(run_id))})" for run_id in law["run_ids"]))
