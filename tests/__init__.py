"""What every test needs, also those that run without conftest.py under the sanitisers."""

import signal

from hypothesis import settings

# A shell without job control starts background processes with SIGINT ignored, nohup does so with SIGHUP, and children
# inherit that.
for name, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    number = getattr(signal, name, None)  # Windows has no SIGHUP
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

# A busy machine is no fault of an example; pytest-timeout bounds each test.
settings.register_profile("memdec", deadline=None)
settings.load_profile("memdec")
