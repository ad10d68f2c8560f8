"""Column expressions, by the names people write.

Why it exists: ``from helios_ray.expressions import col, lit`` is part of the public face.
``pyarrow.compute`` expressions (``pc.field("price") > 100``) are taken everywhere as well.

May import: operators.
"""

from __future__ import annotations

from helios_ray.operators.expressions import Expression, col, lit

__all__ = ["Expression", "col", "lit"]
