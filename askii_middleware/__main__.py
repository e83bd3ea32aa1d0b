"""`python -m askii_middleware` is `askii`."""

from .cli import main

raise SystemExit(main())
