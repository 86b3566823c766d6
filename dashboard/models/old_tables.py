"""Tables that are older than the program: how to tell them from a database that is away.

An update that was not followed by `manage.py migrate` leaves a table or a column missing. SQLite reports that
with the class of error that it also has for a file that is not there.
"""

from __future__ import annotations

from django.db import DatabaseError
from django.utils.translation import gettext_lazy as _

# PostgreSQL's names for a table and a column that do not exist, and SQLite's words.
STATES = ("42P01", "42703")
WORDS = ("no such table", "no such column", "has no column named")
TEXT = _("The tables of the database are older than the program, so some pages fail: run manage.py migrate.")


def is_due_to_old_tables(error: BaseException | None) -> bool:
    """Whether this error, or one that led to it, names a table or column that is missing."""
    while error is not None:
        if isinstance(error, DatabaseError):
            # Only PostgreSQL's driver gives its errors a code.
            code = getattr(error.__cause__, "sqlstate", None)
            if code in STATES or (code is None and any(words in str(error) for words in WORDS)):
                return True
        error = error.__context__
    return False
