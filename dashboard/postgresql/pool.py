"""Connections that a web process keeps for its requests."""

from __future__ import annotations

import select
from typing import Any

from psycopg import Connection, OperationalError

# Nobody looks at a page for longer: to get a connection, and to hear from its server.
SECONDS = 5


def use_pool(database: dict[str, Any], size: int) -> None:
    """Let this process keep up to `size` connections of the database with these settings of Django's.

    A new one for each request would cost more than its queries. Settings that choose a pool, or none, stay.
    """
    options = database["OPTIONS"]
    if "pool" in options:
        return
    # Attempts to connect get rarer; after `reconnect_timeout` the next request begins anew.
    limits = {"timeout": SECONDS, "reconnect_timeout": SECONDS}
    options["pool"] = {"min_size": 1, "max_size": size, **limits}


def check_connection(connection: Connection) -> None:
    """Raise OperationalError unless the server answers an empty query within seconds."""
    server = connection.pgconn
    server.send_query(b"")
    server.flush()
    while True:
        if server.is_busy():
            if not select.select([server.socket], [], [], SECONDS)[0]:
                raise OperationalError("The database server is silent.")
            server.consume_input()
        elif server.get_result() is None:
            return
