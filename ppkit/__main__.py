"""`python -m ppkit` is the `ppkit` command."""

from ppkit.cli import main

raise SystemExit(main())
