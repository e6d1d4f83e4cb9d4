"""The dashboard: its pages, and what they share. Started by `dataeff app`, on the file in DATAEFF_DATABASE.

A page is one short file: queries give frames (`dataeff.reports`), frames give charts, `page` shows them. Nothing is computed
here. Every choice that decides what is seen is in the URL.
"""

import page
import streamlit as st

st.set_page_config(page_title="dataeff", layout="wide")
names = ("Answer", "Study", "Runs", "Laws", "SQL")
pages = [st.Page(f"{name.lower()}.py", title=name, default=name == names[0]) for name in names]
shown = st.navigation(pages, position="hidden")
with page.show_errors():
    page.begin(pages, shown)
    shown.run()
