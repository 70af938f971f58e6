"""What holds for every test: threads, and where Hypothesis takes its examples from.

Under ``pytest -n``, processes of one thread each: OpenMP stalls where more threads than cores wait.
Hypothesis draws the same examples in every run, so that a change is judged by what it changes;
``pytest --hypothesis-profile search`` looks for new ones.
"""

import os

from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None, max_examples=1000)
settings.load_profile("repeatable")
