"""dataeff: which training recipe gets the lowest loss out of a fixed amount of text?"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from dataeff.notebook import Results

__version__ = "0.1.0"


def open(path: Path | str) -> Results:
    """Return the results in a DuckDB file: its frames and charts, for a notebook. Raises `NotFoundError` for no such file."""
    from dataeff.notebook import Results

    return Results(path)
