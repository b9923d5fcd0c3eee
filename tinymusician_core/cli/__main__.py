"""`python -m tinymusician_core.cli`: the `tinymusician` command where it is not installed."""

import sys

from . import main

sys.exit(main())
