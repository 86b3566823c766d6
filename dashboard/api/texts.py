"""Text types of request bodies: names, column names and notes."""

from __future__ import annotations

from typing import Annotated

from django.utils.translation import gettext as _
from pydantic import AfterValidator, Field, StrictStr

from dashboard.forms.catalog.datasets import COLUMN_LENGTH
from dashboard.forms.training.run_notes import NOTE_LETTERS


def one_line(text: str) -> str:
    """Return one line without repeated spaces. Raises ValueError for control characters."""
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in text):
        raise ValueError(_("Enter one line of plain text."))
    return " ".join(text.split())


def storable(text: str) -> str:
    """Return the text unchanged. Raises ValueError for characters that databases cannot store."""
    if "\0" in text or any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        raise ValueError(_("Remove the invalid character."))
    return text


Column = Annotated[StrictStr, Field(max_length=COLUMN_LENGTH), AfterValidator(storable)]
Note = Annotated[StrictStr, Field(max_length=NOTE_LETTERS), AfterValidator(storable)]
Name = Annotated[StrictStr, Field(max_length=120), AfterValidator(one_line)]
