"""The dashboard: which pages there are, and what they share. Started by `dataeff app`, on the file in DATAEFF_DATABASE.

A page is one short file: queries give frames (`dataeff.reports`), frames give charts, `page` shows them. Nothing is computed
here. Every choice that decides what is seen is in the URL.
"""

from __future__ import annotations

import page
import streamlit as st

st.set_page_config(page_title="dataeff", layout="wide")
shown = st.navigation(
    [
        st.Page("answer.py", title="Answer", default=True),
        st.Page("study.py", title="Study"),
        st.Page("runs.py", title="Runs"),
        st.Page("ensembles.py", title="Ensembles"),
        st.Page("data_efficiency.py", title="Data efficiency"),
        st.Page("laws.py", title="Laws"),
        st.Page("sql.py", title="SQL"),
    ]
)
with page.show_errors():
    shown.run()
page.say_how_old()
