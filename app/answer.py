"""The Answer page: what the study asked, what came out in one sentence, its figures and tables, and caveats."""

from typing import Any

import page
import streamlit as st

from dataeff.records.queries import records, study_names
from dataeff.reports.answer import study_answer
from dataeff.reports.charts import limits_chart, ratio_figure
from dataeff.reports.frames import study_limits
from dataeff.reports.laws import RATIOS


def show_reached(study: str) -> dict[str, Any]:
    """Show what a study asked and reached; return its answer."""
    answer = page.read(study_answer, study)
    st.subheader(page.plain(answer["question"]))
    st.markdown(f"**{page.plain(answer['sentence'])}**")
    for claim in answer["claims"]:
        st.markdown(page.plain(claim))
    page.show_table(*answer["trained"], f"{study} trained", height=min(36 * len(answer["trained"][1]) + 38, 360))
    return answer


study = page.choose_study()
others = [name for name in page.read(study_names) if name != study]
other = page.choose("Compare with", [None, *others], "compare", st.sidebar.selectbox) if others else None
answer = show_reached(study)
if other:
    show_reached(other)
limits, ratios = page.read(study_limits, study), page.read(records, RATIOS, [study])
if limits["rows"]:
    st.markdown("**Loss against size**")
    page.show_chart(limits_chart(page.linked(limits["rows"]), limits["recipes"]), f"{study} limits", limits["rows"])
if ratios:
    st.markdown("**Data efficiency**")
    page.show_chart(ratio_figure(page.linked(ratios), limits["recipes"]), f"{study} ratios", ratios)
if answer["limits"][1]:
    st.markdown("**Limits, all extrapolated**")
    page.show_table(*answer["limits"], f"{study} limits table", height="content")
st.markdown("**Caveats**")
sentences = ((line[:2] == "  ", page.plain(line)) for line in answer["caveats"])  # part of the one before, or one of its own
st.markdown("\n".join(f"- {text}" if part else f"\n{text}\n" for part, text in sentences))
