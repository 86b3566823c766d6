"""Launching what a form asks for, once however often its button is pressed; runs and studies do it alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from django.db import IntegrityError

from dashboard.models import OverBudget
from workers.contract.errors import SpecError, TargetError

RowT = TypeVar("RowT")


class LaunchForm(Protocol):
    """A form with an idempotency key, whose fields can take what a spec refused."""

    cleaned_data: dict[str, Any]

    def is_valid(self) -> bool: ...

    def refuse(self, error: SpecError) -> None: ...

    def add_error(self, field: str | None, error: Any) -> None: ...


class Keyed(Protocol):
    """A form that was checked and carries an idempotency key."""

    cleaned_data: dict[str, Any]


def key_of(form: Keyed) -> str:
    """The key under which the form's job is remembered; "" for a form that came without one."""
    given = form.cleaned_data.get("idempotency_key")
    return f"form:{given}" if given else ""


def launched_once(
    form: LaunchForm, earlier: Callable[[str], RowT | None], launch: Callable[[str], RowT]
) -> RowT | None:
    """Return what `launch` or `earlier` returns under the form's key; None with the reason on the form."""
    if not form.is_valid():
        return None
    key = key_of(form)
    try:
        return earlier(key) or launch(key)
    except SpecError as error:
        form.refuse(error)
    except TargetError as error:
        form.add_error("base_model", error.message)
    except OverBudget as error:
        form.add_error(None, str(error))
    except IntegrityError:
        # The other request of a double click was quicker by a moment.
        return earlier(key)
    return None
