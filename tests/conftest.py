"""One thread a process: the tests run in several processes, and more threads than cores only wait for each other."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
