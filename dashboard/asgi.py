"""The ASGI entry: Django behind a guard that bounds every request body before Django spools it to disk."""

from __future__ import annotations

import os

from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dashboard.settings")
django_application = get_asgi_application()

from dashboard.gate import BodyLimit  # noqa: E402

application = BodyLimit(django_application)
