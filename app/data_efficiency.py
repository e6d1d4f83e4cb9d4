"""The Data efficiency page: limits against data with their laws, and the data efficiency of each recipe, three ways."""

from __future__ import annotations

import page
import streamlit as st

from dataeff.reports import efficiency as reports

study = page.choose_study()
page.renew(study)
results = page.read(reports.study_efficiency, study)
chosen = st.sidebar.multiselect("Recipe", results["recipes"], key="recipe", bind="query-params")
ratios, laws, data_laws = (
    [row for row in results[name] if not chosen or row["recipe"] in chosen] for name in ("ratios", "laws", "data_laws")
)
baseline, recipes = results["baseline"], results["recipes"]
method = st.segmented_control("Ratio", list(reports.METHODS), default="by law", required=True, key="method", bind="query-params")
shown = reports.by_method(ratios, method)
left, right = st.columns(2)
with left:
    if any(row["limit_loss"] is not None for row in ratios):
        page.show_chart(reports.data_laws_chart(ratios, laws, recipes, baseline), f"{study} data laws", ratios)
    else:
        st.info("No recipe has a limit yet.")
with right:
    if any(row["ratio"] is not None for row in shown):
        page.show_chart(reports.ratios_chart(shown, method, recipes, baseline), f"{study} data efficiency {method}", shown)
    else:
        st.info(f"No recipe has a data efficiency {method}.")
page.show_sentences(reports.ratio_text(shown, method))
wide = {name: st.column_config.Column(width=130) for name in ("recipe", *reports.METHODS)}
page.show_table(*reports.ratio_table(ratios), f"{study} ratios", height="content", column_config=wide)
st.caption(f"Limits and losses in nats/token; ratios are the tokens that {baseline} needs over D; 90% intervals in brackets. "
           f"Extrapolated: more tokens than the largest budget of {baseline}, where its law was never checked.")  # fmt: skip
st.subheader("Data laws")
page.show_table(*reports.law_table(data_laws), f"{study} data laws", height="content")
st.caption("L = a / D^alpha + limit_loss, D in units of 1e6 tokens; a, limit_loss, its 90% interval and rmse in nats/token.")
