"""Under ``pytest -n``, processes of one thread each: OpenMP stalls where more threads than cores wait."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
