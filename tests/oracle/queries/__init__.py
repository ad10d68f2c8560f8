"""Every query, by kind. Importing this registers them all."""

from tests.oracle.queries import joins, state, windows

__all__ = ["joins", "state", "windows"]
