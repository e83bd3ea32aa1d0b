"""What holds for all tests."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A machine under load is slow now and then; a property that needs a bound in time measures it itself.
settings.register_profile("askii", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("askii")
