"""Detects tables that are older than the program, after an update without `manage.py migrate`.

SQLite raises the same class of error for a missing table or column as for a missing file.
"""

from __future__ import annotations

from django.db import DatabaseError
from django.utils.translation import gettext_lazy as _

# Undefined table and undefined column.
SQLSTATES = ("42P01", "42703")
SQLITE_MESSAGES = ("no such table", "no such column", "has no column named")
TEXT = _("The database tables are older than this version, so some pages fail. Run manage.py migrate.")


def is_due_to_old_tables(error: BaseException | None) -> bool:
    """Return whether this error, or one that caused it, reports a missing table or column."""
    while error is not None:
        if isinstance(error, DatabaseError):
            # Only PostgreSQL's driver gives its errors a code.
            code = getattr(error.__cause__, "sqlstate", None)
            if code in SQLSTATES or (code is None and any(text in str(error) for text in SQLITE_MESSAGES)):
                return True
        error = error.__context__
    return False
