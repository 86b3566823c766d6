"""The database backend for PostgreSQL; `base` says in what it differs from Django's."""
