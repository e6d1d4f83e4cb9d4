"""The Answer page: what the study asked and what came out, its first figure, its table, and caveats."""

from __future__ import annotations

import page
import streamlit as st

from dataeff.reports.answer import plain, study_answer
from dataeff.reports.charts import limits_chart
from dataeff.reports.frames import study_limits

study = page.choose_study()
answer = page.read(study_answer, study)
limits = page.read(study_limits, study)
st.subheader(plain(answer["question"]))
page.show_sentences([answer["sentence"]])
page.show_chart(limits_chart(limits["rows"], limits["recipes"]), f"{study} limits", limits["rows"])
page.show_table(*answer["trained"], f"{study} answer", height="content")
st.markdown("**Limits, extrapolated**")
page.show_table(*answer["limits"], f"{study} limits table", height="content")
st.markdown("**Caveats**")
page.show_sentences(answer["caveats"])
