"""Django's PostgreSQL backend, which here also reports sessions ended by the server as OperationalError.

Django reports them as InternalError. The caller can repeat the transaction, as after any lost connection.
"""

from __future__ import annotations

from types import TracebackType

from django.db import OperationalError
from django.db.backends.postgresql import base
from django.db.utils import DatabaseErrorWrapper
from django.utils.functional import cached_property
from psycopg import errors
from psycopg_pool import ConnectionPool

from dashboard.postgresql.pool import check_connection

SESSION_ENDED = (
    errors.IdleInTransactionSessionTimeout,
    errors.TransactionTimeout,
    # After a failover, the old primary is read-only.
    errors.ReadOnlySqlTransaction,
)


class ErrorWrapper(DatabaseErrorWrapper):
    wrapper: base.DatabaseWrapper

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(exc_value, SESSION_ENDED):
            self.wrapper.errors_occurred = True
            raise OperationalError(*exc_value.args).with_traceback(traceback) from exc_value
        super().__exit__(exc_type, exc_value, traceback)


class DatabaseWrapper(base.DatabaseWrapper):
    """A connection; Django requires this class name."""

    @property
    def pool(self) -> ConnectionPool | None:
        pool: ConnectionPool | None = super().pool
        if pool:
            # Django's own check waits for a silent server without end.
            pool._check = check_connection
        return pool

    @cached_property
    def wrap_database_errors(self) -> ErrorWrapper:
        return ErrorWrapper(self)
