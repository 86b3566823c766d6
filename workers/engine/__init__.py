"""The engine: training, evaluation, import and inspection as plain processes (`python -m workers.engine`).

Knows nothing of Django, Celery, rows or users. Importing this package imports no torch.
"""
