#!/usr/bin/env python
"""Django's command line for Graftworks."""

import os
import sys


def main() -> None:
    """Run a management command."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dashboard.settings")
    if sys.argv[1:2] == ["start"]:
        # Its web processes, which are forks of it, serve the files that it collects.
        os.environ.setdefault("STATIC_MANIFEST", "1")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(f"Graftworks cannot start: {error}")


if __name__ == "__main__":
    main()
