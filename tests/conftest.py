"""Settings that must be in place before torch is imported."""

import os

# The tests are small, several run as many processes as agents, and forked processes must not inherit a thread pool.
os.environ.setdefault("OMP_NUM_THREADS", "1")
