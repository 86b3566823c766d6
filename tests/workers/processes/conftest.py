"""A dispatcher without its loops."""

from __future__ import annotations

import pytest

from dashboard.management.commands.dispatch import Dispatcher
from dashboard.models import WorkerNode


@pytest.fixture
def dispatcher(db: None) -> Dispatcher:
    """A dispatcher that leads and whose grace for holders has passed."""
    dispatcher = Dispatcher()
    dispatcher.register()
    WorkerNode.objects.update(grants_grace_until=None)
    dispatcher.leads = True
    return dispatcher
