"""What every test shares: how hypothesis runs."""

from __future__ import annotations

import os

from hypothesis import settings

# The machine may be busy with other things, so no example has a deadline; pytest-timeout ends what
# hangs. CRYPTOWS_HYPOTHESIS=thorough searches longer than anyone would wait each time.
settings.register_profile("usual", deadline=None, print_blob=True)
settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=5000)
settings.load_profile(os.environ.get("CRYPTOWS_HYPOTHESIS", "usual"))
