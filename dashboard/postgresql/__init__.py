"""Database backend for PostgreSQL."""
