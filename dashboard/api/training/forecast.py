"""The forecast of a run, without starting it."""

from ninja import Router

from dashboard.api.access import Call
from dashboard.api.refusals import WRITING
from dashboard.api.training.schemas import Forecast, RunIn
from dashboard.api.training.training_runs import draft
from dashboard.models.jobs.worker_node import require_4bit_worker
from dashboard.models.training.forecast import forecast_run

router = Router()


@router.post("", response={200: Forecast, **WRITING})
def create(request: Call, payload: RunIn) -> dict[str, object]:
    """Return the forecast of the run that the same body would start. Nothing is started or stored."""
    # Nothing starts, so nothing has to be confirmed yet.
    run = draft(request, payload, confirmed=True)
    if run.in_4bit:
        require_4bit_worker()
    return forecast_run(run)
