"""Idempotent launch of a form's run or study."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from django import forms
from django.db import IntegrityError

from dashboard.forms.training.hyperparameters import LaunchForm
from dashboard.models import OverBudget, Project
from workers.contract.errors import SpecError, TargetError

RowT = TypeVar("RowT")


def key_of(form: forms.Form) -> str:
    """Return the idempotency key of the form's job; "" for a form without one."""
    key = form.cleaned_data.get("idempotency_key")
    return f"form:{key}" if key else ""


def launched_once(
    form: LaunchForm, earlier: Callable[[Project, str], RowT | None], launch: Callable[[str], RowT]
) -> RowT | None:
    """Return what `earlier` finds or `launch` creates under the form's key; None with errors on the form."""
    if not form.is_valid():
        return None
    key = key_of(form)
    try:
        return earlier(form.project, key) or launch(key)
    except SpecError as error:
        form.refuse(error)
    except TargetError as error:
        form.add_error("base_model", error.message)
    except OverBudget as error:
        form.add_error(None, str(error))
    except IntegrityError:
        # The other request of a double click was faster.
        return earlier(form.project, key)
    return None
