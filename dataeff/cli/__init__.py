"""The command line. Nothing imports it: the library below it raises, it prints and exits."""

from dataeff.cli import study, database  # noqa: F401, I001 - in the order of the help
from dataeff.cli.common import app, main  # noqa: F401
