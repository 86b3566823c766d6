"""All engines of a package of tests, forked as the product forks those of a worker.

The tests' server is the product's, with the engine's own modules loaded as well. It forks for any
environment, and also programs that measure an engine. `python -m workers.engine` itself is executed where a
test asks for `unforked_engines`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from workers.supervision import forked_engine
from workers.supervision.forked_engine import ForkingPopen, ForkServer

MODULES = (
    *forked_engine.LIBRARIES,
    "workers.engine.base_models.inspect_model",
    "workers.engine.evaluation.evaluate",
    "workers.engine.importing.run_import",
    "workers.engine.training.train",
)
FORKED = forked_engine.FORKED | {
    name: name
    for name in (
        "tests.engine.engine_cost",
        "tests.engine.importing.corpus",
        "tests.engine.noisy_engine",
        "tests.engine.training.card_steps",
    )
}
# NumPy and pyarrow would start threads at their import.
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
_servers: list[ForkServer] = []


def server(_environment: object) -> ForkServer:
    """Return the server of this process; start it before the first engine."""
    if not _servers or _servers[0].process.poll() is not None:
        variables = os.environ | ONE_THREAD | {"HF_HUB_OFFLINE": "1"}
        _servers[:] = [ForkServer(variables, idle_seconds=3600, modules=MODULES)]
    return _servers[0]


@pytest.fixture(scope="package", autouse=True)
def forked_engines() -> Iterator[None]:
    """Fork the engines of a package of tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forked_engine, "server", server)
        patch.setattr(forked_engine, "FORKED", FORKED)
        patch.setattr(subprocess, "Popen", ForkingPopen)
        yield


@pytest.fixture
def unforked_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the engines of one test with all of their imports."""
    monkeypatch.setattr(forked_engine, "server", lambda _environment: None)
