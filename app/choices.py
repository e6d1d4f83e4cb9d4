"""A choice whose options depend on other choices, and which the URL names all the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import streamlit as st

Option = TypeVar("Option")


def choose(label: str, options: Sequence[Option], key: str, widget: Callable[..., Any] = st.selectbox, **more: Any) -> Option:
    """Return what is chosen; the URL names it also when the options have changed around it.

    Streamlit leaves the first option out of the URL, and does not notice that what was the first no longer is.
    """
    before = st.session_state.get(f"{key} options")
    if before not in (None, list(options)) and st.session_state.get(key) in options:
        st.session_state[key] = st.session_state[key]
    st.session_state[f"{key} options"] = list(options)
    return widget(label, options, key=key, bind="query-params", **more)
