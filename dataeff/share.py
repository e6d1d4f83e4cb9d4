"""Where the files that travel with the package lie: `db/`, `app/` and `studies/`.

In a checkout they are the folders of that name beside the package; in an installed wheel they are carried inside it.
"""

from pathlib import Path

from dataeff.errors import DataeffError

_PACKAGE = Path(__file__).resolve().parent


def shared_folder(name: str) -> Path:
    """Return the folder `name` ("db", "app" or "studies"). Raises `DataeffError` where the installation lacks it."""
    for parent in (_PACKAGE / "_share", _PACKAGE.parent):
        if (parent / name).is_dir():
            return parent / name
    raise DataeffError(f"the folder {name}/ is missing from this installation, in {_PACKAGE}; install dataeff again")
