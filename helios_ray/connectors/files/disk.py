"""The steps that a transaction takes on a local disk, one method each.

Why it exists: between any two of these steps the machine may die, so they are listed in one
place, and the tests put a death between each two. What it promises: each method is one
operation of the file system, and nothing else in this package changes a local file.

May import: nothing.
"""

from __future__ import annotations

import os
from typing import BinaryIO


class Disk:
    """The local file system."""

    def make_directory(self, path: str) -> None:
        """Make one directory; its parent must exist. Fine if it is there already."""
        try:
            os.mkdir(path)
        except FileExistsError:
            if not os.path.isdir(path):
                raise

    def create(self, path: str) -> BinaryIO:
        """Create a file that is not there yet, to write to."""
        return open(path, "xb")

    def sync_file(self, file: BinaryIO) -> None:
        """Force the bytes of a file to the disk."""
        file.flush()
        os.fsync(file.fileno())

    def sync_directory(self, path: str) -> None:
        """Force the names in a directory to the disk."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, source: str, target: str) -> None:
        """Move a file within the file system, atomically."""
        os.rename(source, target)

    def remove_file(self, path: str) -> None:
        """Remove a file; fine if it is gone."""
        try:
            os.unlink(path)
        except FileNotFoundError:
            return

    def remove_directory(self, path: str) -> None:
        """Remove an empty directory; fine if it is gone."""
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return
