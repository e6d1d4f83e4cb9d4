"""The tables' section of `db/README.md`, made from the classes of `dataeff.records.tables`: `python docs/tables.py` writes it."""

from __future__ import annotations

import re

from dataeff.records.tables import Table
from dataeff.share import shared_folder

SECTION = re.compile(r"(?<=<!-- tables -->\n).*(?=<!-- end of tables -->)", re.DOTALL)


def with_tables(readme: str) -> str:
    """Return the text with the section between its two markers made anew."""
    sections = []
    for table in Table.__subclasses__():
        rows = [f"| `{name}` | {field.description} |\n" for name, field in table.model_fields.items()]
        about = " ".join(table.__doc__.split())
        sections.append(f"### `{table.__tablename__}`\n\n{about}\n\n| column | meaning |\n|---|---|\n{''.join(rows)}\n")
    return SECTION.sub(lambda _: "\n" + "".join(sections), readme)


if __name__ == "__main__":
    file = shared_folder("db") / "README.md"
    file.write_text(with_tables(file.read_text(encoding="utf-8")), encoding="utf-8")
