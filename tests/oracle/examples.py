"""The examples that have a batch meaning, and the SQL that says it.

Each such module under ``examples/`` has ``build(env)``, the inputs as ``tables()``, and
``ORACLE``: by the uid of a collected sink, what it must hold.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

import examples
from helios_ray import StreamExecutionEnvironment


@dataclass(frozen=True)
class Example:
    """One example.

    Args:
        name: of its directory.
        module: its program.
    """

    name: str
    module: Any

    @property
    def sql(self) -> Mapping[str, str]:
        """Query by sink uid."""
        found: Mapping[str, str] = self.module.ORACLE
        return found

    def build(self, env: StreamExecutionEnvironment) -> None:
        """Describe its dataflow."""
        self.module.build(env)

    def batch(self) -> Iterator[tuple[str, pa.Table]]:
        """What each sink must hold."""
        con = duckdb.connect()
        con.execute("set TimeZone = 'UTC'")
        for name, table in self.module.tables().items():
            con.register(name, table)
        for uid, sql in self.sql.items():
            yield uid, con.sql(sql).to_arrow_table()


def found() -> list[Example]:
    """Every example with an ``ORACLE``, by name.

    Raises:
        RuntimeError: none is found, which would make a comparison of nothing.
    """
    directories = [str(Path(place)) for place in examples.__path__]
    names = sorted(m.name for m in pkgutil.iter_modules(directories)) + sorted(
        path.parent.name for place in directories for path in Path(place).glob("*/main.py")
    )
    modules = [
        Example(name, importlib.import_module(f"examples.{name}.main"))
        for name in dict.fromkeys(names)
        if any((Path(place) / name / "main.py").exists() for place in directories)
    ]
    with_oracle = [example for example in modules if hasattr(example.module, "ORACLE")]
    if not with_oracle:
        raise RuntimeError(f"no example under {directories} has an ORACLE")
    return with_oracle
