"""The Answer page: what the study asked and what came out, its first figure, its table, and what is in doubt."""

from __future__ import annotations

import page
import streamlit as st

from dataeff.reports.answer import answer_table, plain
from dataeff.reports.charts import limits_chart
from dataeff.reports.frames import study_answer

study = page.choose_study()
page.renew(study)
found = page.read(study_answer, study)
question, answers, doubts = found["text"]
limits = found["limits"]
st.subheader(plain(question))
page.show_sentences(answers)
drawn = [{"what": what, **row} for what in ("points", "laws", "curves", "limits", "worth") for row in limits[what]]
page.show_chart(limits_chart(**{**limits, "title": ""}, dark=page.dark()), f"{study} limits", drawn)
page.show_table(*answer_table(*found["table"]), f"{study} answer", height="content")
st.markdown("**What is in doubt**")
page.show_sentences(doubts)
