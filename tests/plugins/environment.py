"""The environment of Django's settings in tests: never the data of a real installation.

A pytest plugin (see `addopts`), so that it comes before Django's own: processes of `pytest -n` inherit the
first one's environment, and would share its data folder.
"""

from __future__ import annotations

import os
import tempfile

from tests.servers import free_port

_data_dir = tempfile.TemporaryDirectory(prefix="graftworks-tests-")
os.environ["DATA_DIR"] = _data_dir.name
os.environ["DJANGO_SETTINGS_MODULE"] = "dashboard.settings"
os.environ.setdefault("SECRET_KEY", "only-for-tests")
os.environ["EMAIL_URL"] = "memorymail://"
for _name in ("DATABASE_URL", "REDIS_URL", "PUBLIC_URL", "STATIC_MANIFEST"):
    os.environ.pop(_name, None)
# Set by `python -m tests.servers`: PostgreSQL, and a broker on a port for whichever test starts one.
if "TEST_DATABASE_URL" in os.environ:
    os.environ["DATABASE_URL"] = os.environ["TEST_DATABASE_URL"]
    os.environ["REDIS_URL"] = f"redis://127.0.0.1:{free_port()}/0"
