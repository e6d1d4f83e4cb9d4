"""dataeff: which training recipe gets the lowest loss out of a fixed amount of text?"""

__version__ = "0.1.0"
