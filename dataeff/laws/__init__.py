"""Scaling laws and their fits. Numpy and scipy only; knows no database."""
