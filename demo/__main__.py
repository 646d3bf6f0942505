"""Run the demo: ``python -m demo [--once]``."""

import sys

from demo.system import main

sys.exit(main())
