"""``python -m molsampler`` is the command ``molsampler``."""

import sys

from .cli import main

sys.exit(main())
