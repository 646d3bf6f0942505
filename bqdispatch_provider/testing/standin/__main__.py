"""``python -m bqdispatch_provider.testing.standin`` is ``bqdispatch-standin``."""

from bqdispatch_provider.testing.standin import main

raise SystemExit(main())
