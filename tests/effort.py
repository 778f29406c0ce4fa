"""How long state machines are walked: a little each time, long when CRYPTOWS_HYPOTHESIS says so."""

import os

from hypothesis import HealthCheck, settings

FACTOR = 50 if os.environ.get("CRYPTOWS_HYPOTHESIS") == "thorough" else 1


def effort(examples: int, steps: int) -> settings:
    """Return settings for so many walks of up to so many steps."""
    return settings(
        deadline=None,
        max_examples=examples * FACTOR,
        stateful_step_count=steps,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
