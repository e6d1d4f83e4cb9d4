"""The Answer page: what the study asked and what came out, its first figure, its table, and caveats."""

from __future__ import annotations

import page
import streamlit as st

from dataeff.reports.answer import answer_table, plain, study_answer
from dataeff.reports.charts import limits_chart

study = page.choose_study()
answer = page.read(study_answer, study)
question, answers, caveats = answer["text"]
limits = answer["limits"]
st.subheader(plain(question))
page.show_sentences(answers)
page.show_chart(limits_chart(limits["rows"], limits["recipes"]), f"{study} limits", limits["rows"])
page.show_table(*answer_table(*answer["table"]), f"{study} answer", height="content")
st.markdown("**Caveats**")
page.show_sentences(caveats)
