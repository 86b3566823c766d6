"""The web process keeps connections to PostgreSQL; a real one loses its server and finds it again."""

from __future__ import annotations

import time
import urllib.request

import pytest
from django.conf import settings
from django.db import connection

from dashboard.models import User
from tests.conftest import shared_environment
from tests.dashboard.routes import sign_in
from tests.e2e.installation import send
from tests.proxy import Proxy
from tests.servers import free_port
from tests.workers.programs import running, wait_until

# A page waits this long for a connection, and a reply is given up after as long.
LIMIT_SECONDS = 12


def sessions() -> set[int]:
    """Return the process ids of the sessions of this database, but this one's."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid != pg_backend_pid()"
        )
        return {pid for (pid,) in cursor.fetchall()}


@pytest.mark.jobs
def test_connections_are_kept_and_replaced_after_an_outage(transactional_db: None, vera: User) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no connections to keep.")
    cookie = f"{settings.SESSION_COOKIE_NAME}={sign_in(vera)}"
    port, server = free_port(), connection.settings_dict
    serve = ("-m", "uvicorn", "dashboard.asgi:application", "--host", "127.0.0.1", "--port", str(port))

    def status() -> int:
        home = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Cookie": cookie})
        try:
            return send(home).status
        except OSError:
            return 0

    with Proxy(f"{server['HOST']}:{server['PORT']}") as proxy:
        url = shared_environment()["DATABASE_URL"]
        url = url.replace(f":{server['PORT']}/", f":{proxy.port}/").replace(server["HOST"], "127.0.0.1")
        with running(*serve, "--no-access-log", DATABASE_URL=url):
            wait_until(lambda: status() == 200, "the web server answers")
            kept = sessions()
            assert kept
            assert [status() for _time in range(5)] == [200] * 5
            assert sessions() == kept, "no request opened a connection"
            for fault in (proxy.refuse, proxy.black_hole):
                fault()
                began = time.monotonic()
                assert status() == 503, fault.__name__
                assert time.monotonic() - began < LIMIT_SECONDS, fault.__name__
                proxy.heal()
                wait_until(lambda: status() == 200, "the web server has a connection again", LIMIT_SECONDS)
