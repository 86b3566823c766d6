"""Django's PostgreSQL, where a session that the server has taken away is an OperationalError as well.

Django calls that an internal error, as it does with faults of a program. But a worker or a page that slept
within a transaction can begin it anew, so it is handled like any other connection that was lost.
"""

from __future__ import annotations

from types import TracebackType

from django.db import OperationalError
from django.db.backends.postgresql import base
from django.db.utils import DatabaseErrorWrapper
from django.utils.functional import cached_property
from psycopg import errors

TAKEN_AWAY = (
    errors.IdleInTransactionSessionTimeout,
    errors.TransactionTimeout,
    # Another server has taken over, and this one only reads.
    errors.ReadOnlySqlTransaction,
)


class ErrorWrapper(DatabaseErrorWrapper):
    """Turns the driver's errors into Django's."""

    wrapper: base.DatabaseWrapper

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Raise Django's error for the driver's."""
        if isinstance(exc_value, TAKEN_AWAY):
            self.wrapper.errors_occurred = True
            raise OperationalError(*exc_value.args).with_traceback(traceback) from exc_value
        super().__exit__(exc_type, exc_value, traceback)


class DatabaseWrapper(base.DatabaseWrapper):
    """A connection; Django looks for it under this name."""

    @cached_property
    def wrap_database_errors(self) -> ErrorWrapper:
        """What every call of the driver goes through."""
        return ErrorWrapper(self)
