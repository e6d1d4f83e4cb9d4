"""The Answer page: a study's first figure, its table, and what is in doubt. Started by `dataeff app`."""

from __future__ import annotations

import os
from pathlib import Path

import streamlit as st

from dataeff.errors import DataeffError
from dataeff.records import queries
from dataeff.records.store import Database
from dataeff.reports.answer import answer_rows, answer_table, answer_text
from dataeff.reports.frames import study_limits_chart

st.set_page_config(page_title="dataeff", layout="wide")
database = Database(Path(os.environ.get("DATAEFF_DATABASE", "dataeff.duckdb")))
try:
    with database.read() as connection:
        names = [row[0] for row in queries.studies(connection)[1]]
        if not names:
            st.info("No study is recorded yet. Run one: `dataeff run quickstart`")
            st.stop()
        asked = st.query_params.get("study")
        study = st.selectbox("Study", names, index=names.index(asked) if asked in names else 0)
        st.query_params["study"] = study
        rows = answer_rows(connection, study)
        text = answer_text(connection, study, *rows)
        chart = study_limits_chart(connection, study, dark=st.context.theme.type == "dark")
except DataeffError as error:
    st.error(str(error))
    st.stop()

st.altair_chart(chart, theme=None, width="content")
columns, table = answer_table(*rows)
st.dataframe([dict(zip(columns, row, strict=True)) for row in table], hide_index=True)
st.text(text)
