"""What every test needs, also those that run without conftest.py under the sanitisers."""

import signal

from hypothesis import settings

# A shell without job control starts background processes with SIGINT ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no fault of an example; pytest-timeout bounds each test.
settings.register_profile("memdec", deadline=None)
settings.load_profile("memdec")
