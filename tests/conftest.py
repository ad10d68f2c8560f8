"""What every test of the project shares: how Hypothesis searches, and what it prints.

``HYPOTHESIS_PROFILE`` chooses how hard the property tests look:

- ``default``: a hundred fresh examples each, as a developer wants them.
- ``ci``: the same examples on every run, so that a red run is about the change.
- ``deep``: two thousand fresh examples each, for a night.

No profile has a deadline: a property says what holds, never how fast, and a test that
depends on the wall clock fails on a busy machine for no reason.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

# Tests must not phone home, whoever starts Ray in them.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

_SHARED = {
    "deadline": None,
    "print_blob": True,
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("default", max_examples=100, **_SHARED)
settings.register_profile("ci", max_examples=100, derandomize=True, database=None, **_SHARED)
settings.register_profile("deep", max_examples=2_000, **_SHARED)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
