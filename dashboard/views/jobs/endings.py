"""The next steps on the page of an ended run: advice, settings to retry with, and its checkpoint."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.conf import settings

from dashboard.forms.training.retry import primary_action, retries
from dashboard.models import TrainingRun
from workers.contract.errors import RESUME, START, advice


def ending_context(run: TrainingRun) -> dict[str, Any]:
    """Return the context; an active run has no proposals and nothing to resume."""
    step, proposals = run.resumable_from, retries(run)
    days, ended = settings.KEEP_CHECKPOINTS_DAYS, run.job.finished_at if run.job else None
    return {
        "advice": advice((run.error or {}).get("code", ""), RESUME if step else START),
        "retries": proposals,
        "primary_action": primary_action(run, can_resume=bool(step), proposals=proposals),
        "resumable_from": step,
        "kept_days": days,
        "kept_until": ended + timedelta(days=days) if ended else None,
    }
