"""The version, in the one place that the build, the package and the records read it from.

Why it exists: the build reads this file as text and the package imports it, so the two
cannot disagree.

May import: nothing.
"""

__version__ = "0.1.0"
