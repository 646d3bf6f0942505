"""How long properties are tried: the same examples every time, or with HYPOTHESIS_PROFILE=soak many new ones."""

import os

from hypothesis import HealthCheck, settings

_slow = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow], "print_blob": True}
settings.register_profile("repeatable", derandomize=True, database=None, max_examples=100, **_slow)
settings.register_profile("soak", max_examples=5_000, **_slow)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))
