"""The `openai` package with Ed's token."""

from __future__ import annotations

import pytest
from openai import OpenAI

from tests.openai_client import Connect, connect, transport  # noqa: F401 - fixtures


@pytest.fixture
def client(connect: Connect, token: str) -> OpenAI:  # noqa: F811
    """A client with Ed's token."""
    return connect(token)
