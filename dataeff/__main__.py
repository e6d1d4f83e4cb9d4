"""`python -m dataeff` is the command line."""

from dataeff.cli import main

if __name__ == "__main__":
    main()
