"""The Laws page: any law of a study, its fit and limit, and what tests it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import page
import streamlit as st

from dataeff.reports import laws as reports
from dataeff.reports.answer import plain

LABELS = {"recipe": "Recipe", "seed_tokens": "D (tokens)", "size": "Size", "averaging": "Averaged"}


def choose_law(study: str) -> dict[str, Any]:
    """Return the law chosen, one of `law_choices`; ends the page where there is none."""
    laws = page.read(reports.law_choices, study)
    if not laws:
        st.info(f"{study} has no law: it has no cells, or none of them has finished.")
        st.stop()
    kinds = list(dict.fromkeys(law["over"] for law in laws))
    lacking = {"N": "no recipe takes its limit in N", "K": "no ensemble is recorded"}
    if reasons := [f"No law over {name}: {why}." for name, why in lacking.items() if name not in kinds]:
        st.sidebar.caption(" ".join(reasons))
    with st.sidebar:
        about = {"required": True, "help": "N: parameters, D fixed. K: members of an ensemble. D: seed tokens."}
        over = page.choose("Law over", kinds, "over", st.segmented_control, default=kinds[0], **about)
        laws = [law for law in laws if law["over"] == over]
        for name, label in LABELS.items():
            if values := [value for value in dict.fromkeys(law[name] for law in laws) if value is not None]:
                value = page.choose(label, values, "D" if name == "seed_tokens" else name)
                laws = [law for law in laws if law[name] == value]
    return laws[0]


study = page.choose_study()
chosen = choose_law(study)
over, name = chosen["over"], " ".join(str(value) for value in chosen.values() if value not in (None, 0))
law = page.read(reports.study_law, study, over, *(chosen[part] for part in LABELS))
where = [f"D = {chosen['seed_tokens']:,} tokens"] if chosen["seed_tokens"] else []
where += [chosen["size"], f"{chosen['averaging']} averaged"] if chosen["size"] else []
st.subheader(plain(", ".join([f"{chosen['recipe']} over {over}", *where])))
left, right = st.columns([5, 4])
with left:
    if law["points"]:
        page.show_chart(reports.law_chart(law), f"{study} law {name}", law["points"])
with right:
    if law["fit"]:
        page.show_chart(reports.profile_chart(law), f"{study} profile {name}", law["profile"]["points"])
page.show_sentences(reports.law_text(law))
if law["fit"]:
    st.markdown("**Rival forms, on the same points**")
    rows = [list(rival.values()) for rival in law["rivals"]]
    wide = {"doubts": st.column_config.Column(width="large")}
    page.show_table(list(law["rivals"][0]), rows, f"{study} rivals {name}", height="content", column_config=wide)
    st.caption(
        "Limit, held-out error (root mean square, each point left out in turn) and rmse in nats/token; the least AICc is best."
    )
if law["stored"]:
    st.markdown("**The recorded fit**" + (" of the recipe's limit at this D, over its sizes" if over == "K" else ""))
    page.show_table(*reports.stored_table(law["stored"]), f"{study} fit {name}", height="content", width=760)
else:
    st.caption("No fit is recorded yet; `dataeff answer` of the study does it.")
if law["run_ids"]:
    with st.expander(f"{len(law['run_ids'])} runs" + (", its members" if over == "K" else "")):
        st.markdown("  \n".join(f"[{run_id}](runs?study={quote(study)}&run={run_id})" for run_id in law["run_ids"]))
