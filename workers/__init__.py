"""The work: specs, engine, supervisor and Celery tasks."""
