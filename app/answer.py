"""The Answer page: what the study asked and what came out, its first figure, its table, and what is in doubt."""

from __future__ import annotations

import page
import streamlit as st

from dataeff.reports.answer import answer_rows, answer_table, answer_text
from dataeff.reports.charts import limits_chart
from dataeff.reports.frames import study_limits

study = page.choose_study()
page.renew(study)
columns, rows = page.read(answer_rows, study)
question, answers, doubts = page.read(answer_text, study, columns, rows)
found = page.read(study_limits, study)
st.subheader(question)
page.show_sentences(answers)
drawn = [{"what": what, **row} for what in ("points", "laws", "curves", "limits", "worth") for row in found[what]]
page.show_chart(limits_chart(**{**found, "title": ""}, dark=page.dark()), f"{study} limits", drawn)
page.show_table(*answer_table(columns, rows), f"{study} answer", height="content")
st.markdown("**What is in doubt**")
page.show_sentences(doubts)
