"""Short texts that people will read: one line, no control letters, spaces tidied."""

from __future__ import annotations

from typing import Annotated

from django.utils.translation import gettext as _
from pydantic import AfterValidator, Field, StrictStr


def one_line(text: str) -> str:
    """The text as it is kept; refused where a page could not show it."""
    if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 for letter in text):
        raise ValueError(_("Write one line of plain text."))
    return " ".join(text.split())


Name = Annotated[StrictStr, Field(max_length=120), AfterValidator(one_line)]
