"""A live line about a running job on a terminal or in a notebook; log lines otherwise.

Why it exists: a job that shows nothing for a minute looks hung. Rows per second, event time
and the last checkpoint are what people look for.

May import: this room's reports.
"""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from typing import Any, TextIO

from helios_ray.runtime.reports import JobReport


def describe(report: JobReport, rows_per_second: float) -> str:
    """One line about a job."""
    parts = [
        f"{report.job}: {report.status.value}",
        f"{rows_per_second:,.0f} rows/s",
        f"read {report.rows_read:,}",
    ]
    if report.watermark is not None:
        time = datetime.fromtimestamp(report.watermark / 1_000_000, tz=timezone.utc)
        parts.append(f"watermark {time:%Y-%m-%d %H:%M:%S}")
    last = report.last_checkpoint
    if last is not None:
        parts.append(
            f"checkpoint {last.checkpoint_id} {last.outcome} ({last.duration * 1000:.0f} ms)"
        )
    if report.restarts:
        parts.append(f"restarts {report.restarts}")
    return " · ".join(parts)


class Progress:
    """Shows reports as they come.

    Args:
        enabled: None decides by who is watching.
        stream: where to write.
    """

    def __init__(self, enabled: bool | None, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._notebook = _notebook_display() if enabled is not False else None
        live = self._stream.isatty() or self._notebook is not None
        self._live = live if enabled is None else enabled and live
        self._lines = enabled is not False and not self._live
        self._before: JobReport | None = None
        self._said = 0.0
        self._width = 0
        self._display: Any = None

    def update(self, report: JobReport) -> None:
        """Show where the job stands."""
        before = self._before
        changed = before is None or (before.status, before.restarts) != (
            report.status,
            report.restarts,
        )
        elapsed = 1.0 if before is None else report.now - before.now
        read = report.rows_read - (before.rows_read if before is not None else 0)
        text = describe(report, max(0.0, read / elapsed) if elapsed > 0 else 0.0)
        if self._live:
            self._show(text)
        elif self._lines and (changed or report.now - self._said >= 5.0):
            self._said = report.now
            print(text, file=self._stream, flush=True)
        if changed or elapsed >= 1.0:
            self._before = report

    def _show(self, text: str) -> None:
        if self._notebook is not None:
            if self._display is None:
                self._display = self._notebook({"text/plain": text}, raw=True, display_id=True)
            else:
                self._display.update({"text/plain": text}, raw=True)
            return
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)

    def close(self) -> None:
        """End the line."""
        if self._live and self._notebook is None and self._width:
            self._stream.write("\n")
            self._stream.flush()


def _notebook_display() -> Any:
    """IPython's ``display`` if a notebook kernel is running this, else None."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is None or type(shell).__name__ != "ZMQInteractiveShell":
        return None
    from IPython.display import display

    return display
