import page
import streamlit as st

study = page.choose_study()
st.title("runs")
