"""The ASGI application: Django behind the limits of request bodies and of requests at a time."""

from __future__ import annotations

import os
import warnings

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "dashboard.settings")
django.setup(set_prefix=False)

from django.conf import settings  # noqa: E402
from django.db import connection  # noqa: E402

from dashboard.back_pressure import BackPressure  # noqa: E402
from dashboard.gate import BodyLimit  # noqa: E402
from dashboard.streams import Handler  # noqa: E402

# Nobody looks at a page for 20 s; a worker waits that long and writes. One dict serves all threads.
SQLITE_LOCK_SECONDS = 5
if connection.vendor == "sqlite":
    connection.settings_dict["OPTIONS"]["timeout"] = SQLITE_LOCK_SECONDS
else:
    from dashboard.postgresql.pool import use_pool

    # Streams and chats need one now and then, beside requests.
    use_pool(connection.settings_dict, 2 * settings.REQUESTS_AT_A_TIME + 4)

# WhiteNoise's files are read whole, once per browser and release: small enough for the log to stay quiet.
warnings.filterwarnings("ignore", message="StreamingHttpResponse must consume synchronous iterators")

application = BackPressure(BodyLimit(Handler()))
