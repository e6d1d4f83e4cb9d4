"""The Answer page: a study's first figure, its table, and what is in doubt."""

from __future__ import annotations

import page
import streamlit as st

from dataeff.reports.answer import answer_rows, answer_table, answer_text
from dataeff.reports.charts import limits_chart
from dataeff.reports.frames import study_limits

study = page.choose_study()
columns, rows = page.read(answer_rows, study)
found = page.read(study_limits, study)
chart = limits_chart(**found, dark=page.dark())
page.show_chart(
    chart, f"{study} limits", [{"what": what, **row} for what in ("points", "laws", "curves", "limits") for row in found[what]]
)
page.show_table(*answer_table(columns, rows), f"{study} answer")
st.text(page.read(answer_text, study, columns, rows))
