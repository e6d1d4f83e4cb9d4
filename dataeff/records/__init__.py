"""The DuckDB file: tables, the one way to write it, and the small reads the command line needs. No torch."""
