"""``python -m bqdispatch_provider.testing.bqtail`` feeds events into emulators and prints the account."""

from bqdispatch_provider.testing.bqtail.command import main

raise SystemExit(main())
