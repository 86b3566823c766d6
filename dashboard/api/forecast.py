"""The forecast of a run, without starting it."""

from ninja import Router

from dashboard.api.access import Call
from dashboard.api.base_models import inspected
from dashboard.api.choices import config_of, newest_version
from dashboard.api.refusals import WRITING
from dashboard.api.target_module_configs import chosen_base_model
from dashboard.api.training_runs import Forecast, RunIn
from dashboard.models import TrainingRun
from dashboard.models.forecast import forecast_run
from dashboard.models.training_run import require_4bit_worker
from workers.hyperparameters import hyperparameters_from

router = Router()


@router.post("", response={200: Forecast, **WRITING})
def create(request: Call, payload: RunIn) -> dict[str, object]:
    """Return the forecast of the run that the same body would start. Nothing is started or stored."""
    config = config_of(request, payload.target_module_config)
    run = TrainingRun(
        project=request.auth.project,
        created_by=request.auth.user,
        name=payload.name or "-",
        dataset_version=newest_version(request, payload.dataset),
        base_model=inspected(chosen_base_model(request, payload.base_model)),
        target_module_config=config,
    )
    learn = hyperparameters_from(payload.hyperparameters.dict() if payload.hyperparameters else {})
    # Nothing starts, so nothing has to be confirmed yet.
    run.freeze(learn, confirmed=True)
    require_4bit_worker(learn)
    return forecast_run(run)
