"""The dashboard: which pages there are, and what they share. Started by `dataeff app`, on the file in DATAEFF_DATABASE.

A page is one short file: queries give frames (`dataeff.reports`), frames give charts, `page` shows them. Nothing is computed
here. Every choice that decides what is seen is in the URL.
"""

from __future__ import annotations

import page
import streamlit as st

st.set_page_config(page_title="dataeff", layout="wide")
st.html(page.STYLE)
pages = [st.Page(f"{name}.py", title=name.capitalize(), default=name == "answer") for name in ("answer", "study", "runs", "laws")]
pages.append(st.Page("sql.py", title="SQL"))
shown = st.navigation(pages, position="hidden")
with page.show_errors():
    page.begin(pages, shown)
    shown.run()
