"""Files as sources and sinks: Parquet, CSV and JSON Lines, on local disk and on S3.

Why it exists: the public face of this package; the modules beside it hold one idea each.

May import: elements, errors, identifiers, connectors.base.
"""

from __future__ import annotations

from helios_ray.connectors.files.committed import read_committed
from helios_ray.connectors.files.delimited import CsvOptions
from helios_ray.connectors.files.sink import FileSink
from helios_ray.connectors.files.source import FileSource

__all__ = ["CsvOptions", "FileSink", "FileSource", "read_committed"]
