"""The checkpoints of a job: of a finished one the weights that became its model."""

from __future__ import annotations

from typing import Any

from ninja import Router

from dashboard.api.access import Call
from dashboard.api.openai.jobs import PREFIX, adapter_of, fetch
from dashboard.api.openai.lists import DEFAULT_LIMIT, After, Limit, listing, seconds, wrong_after
from dashboard.api.openai.metrics import curves_of, values_at
from dashboard.api.openai.models import checkpoint_name, published_step
from dashboard.api.refusals import refuse_others
from dashboard.models import Adapter, TrainingRun

router = Router()
VALIDATED = ("valid_loss", "valid_mean_token_accuracy")


@router.get("/{str:job}/checkpoints")
def index(request: Call, job: str, limit: Limit = DEFAULT_LIMIT, after: After = "") -> dict[str, Any]:
    """List the checkpoints that can be used as a model: the published weights.

    Those that a job can be resumed from are no models and are not listed.
    """
    refuse_others(list(request.GET), ["limit", "after"])
    run = fetch(request, job)
    adapter = adapter_of(run)
    found = [serialize_checkpoint(run, adapter)] if adapter else []
    if after and after not in (checkpoint["id"] for checkpoint in found):
        raise wrong_after()
    return listing([] if after else found, limit)


def serialize_checkpoint(run: TrainingRun, adapter: Adapter) -> dict[str, Any]:
    """Return the checkpoint object of a run's published weights.

    `full_valid_` metrics are of all validation rows: equal to `valid_` if every row was used, else null.
    """
    step = published_step(adapter)
    metrics = values_at(curves_of(run), step)
    has_used_all = run.measured.get("validation_rows") == run.available_validation_rows
    return {
        "id": f"ftckpt_{run.pk}-{step}",
        "object": "fine_tuning.job.checkpoint",
        "created_at": seconds(adapter.created_at),
        "fine_tuning_job_id": f"{PREFIX}{run.pk}",
        "fine_tuned_model_checkpoint": checkpoint_name(adapter),
        "step_number": step,
        "metrics": {
            "step": step,
            **metrics,
            **{f"full_{name}": metrics[name] if has_used_all else None for name in VALIDATED},
        },
    }
