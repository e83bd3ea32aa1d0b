"""The guides users already follow, run against `askii_middleware.compat`."""
