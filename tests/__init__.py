"""Tests of skve."""

import os

# Before torch is imported, here and in the processes that tests start: toys are so small that threads cost more time
# than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")
