"""Where the files that travel with the package lie: `db/`, `app/` and `studies/`.

In a checkout they are the folders of that name beside the package; in an installed wheel they are carried inside it.
"""

from __future__ import annotations

from pathlib import Path

from dataeff.errors import DataeffError

_PACKAGE = Path(__file__).resolve().parent


def shared_folder(name: str) -> Path:
    """Return the folder `name` ("db", "app" or "studies"). Raises `DataeffError` where the installation lacks it."""
    candidates = [_PACKAGE / "_share" / name, _PACKAGE.parent / name]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise DataeffError(f"the folder {name}/ is missing from this installation (looked in {candidates}); install dataeff again")
