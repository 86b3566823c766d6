"""Studies: list, create, cancel, add seeds, re-evaluate, export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Literal, cast

from django.db.models import TextField
from django.db.models.functions import Cast
from django.http import HttpResponse
from django.utils.translation import gettext as _
from ninja import Router, Schema, Status
from pydantic import ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from dashboard.api.access import Call, do_once, once
from dashboard.api.answer import Answer, Time, write
from dashboard.api.catalog.base_models import require_inspected
from dashboard.api.catalog.target_module_configs import chosen_base_model
from dashboard.api.choices import HyperparametersIn, IdOrSlug, config_of, newest_version
from dashboard.api.evaluations.evaluations import submit_reevaluation
from dashboard.api.evaluations.forgetting import ForgettingOut
from dashboard.api.failures import Failure
from dashboard.api.pagination import Newest, Rows, listing
from dashboard.api.refusals import READING, WRITING, Nothing, Refusal, invalid
from dashboard.api.texts import Name
from dashboard.models import ArmPlan, IllegalMove, Job, Role, Study, TargetModuleConfig
from dashboard.models.studies.added_seeds import add_seeds
from dashboard.models.studies.launch import launch_study
from dashboard.models.studies.plan import DEFAULT_MARGIN, DEFAULT_SEEDS, MOST_TEST_ROWS, TEST_ROWS
from dashboard.models.studies.results.export import export_dict, study_dict
from dashboard.models.training.automatic import ChosenSettings, with_equal_length
from dashboard.models.training.forecast import RunForecaster
from workers.contract.errors import SpecError

router = Router()


class ArmIn(Schema):
    """One arm. Its name defaults to the slug of its config."""

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    target_module_config: IdOrSlug
    hyperparameters: HyperparametersIn | None = None


class StudyIn(Schema):
    """A study to start. Without `learning_rates`, each arm keeps its own learning rate.

    `seeds`: results are checked after 3, 5, 7 and so on, and after all; fewer than 3 give no verdict. An arm
    that is decided at such a look gets no further seeds, and the study ends when all are. `max_hours`: the
    computing time after which no further seed starts, from 0.01 to 10,000; null for no limit.
    `reuse`: use finished runs of the project with equal settings, data, base model, seed and engine version
    in place of training them again.
    `test_rows`: the most that are scored. `margin`: in the metric's unit; 0.03 is 3 points. `reference`: the
    name of the reference arm; default `quality`. `pattern`: the RE2 expression of the metric `regex`.
    `confirmed`: accepts the warnings of the target modules, as for a run. Null means the default.
    """

    model_config = ConfigDict(extra="forbid")

    name: Name | None = None
    dataset: StrictInt
    base_model: StrictInt | None = None
    arms: list[ArmIn]
    seeds: list[StrictInt] = Field(default_factory=lambda: list(DEFAULT_SEEDS))
    budget: Literal["equal-rank", "equal-parameters"] = "equal-rank"
    metric: StrictStr | None = None
    pattern: StrictStr | None = None
    reference: Name | None = None
    margin: Annotated[StrictFloat, Field(ge=0)] | None = DEFAULT_MARGIN
    learning_rates: list[StrictFloat] | None = None
    test_rows: Annotated[StrictInt, Field(ge=1, le=MOST_TEST_ROWS)] = TEST_ROWS
    max_hours: StrictFloat | None = None
    reuse: StrictBool = True
    confirmed: StrictBool = False


class SeedsIn(Schema):
    """Seeds to add."""

    model_config = ConfigDict(extra="forbid")

    seeds: list[StrictInt] = []


class Estimate(Answer):
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


class ArmOut(Answer):
    """An arm with its costs and scores. Costs are means over its runs.

    `ms_per_token`: milliseconds per generated token of one request, with the adapter unmerged.
    `measured_alone`: whether no other arm of the same job affected its time and memory.
    `bracketed`: whether the chosen rate is not the lowest or highest of `learning_rates_tried`; null without
    a choice. `needs_no_seeds`: whether a look has decided it, so that it gets no further seeds.
    `reused_from`: the finished runs whose adapters stand in for some of `runs`.
    """

    name: str
    target_module_config: int
    learning_rate: float | None
    learning_rates_tried: list[float]
    bracketed: bool | None
    trainable_parameters: int | None
    adapter_bytes: int | None
    seconds: float | None
    peak_memory_bytes: float | None
    ms_per_token: float | None
    measured_alone: bool | None
    runs: list[int]
    reused_from: list[int]
    needs_no_seeds: bool
    error: Failure | None
    metric: Estimate | None
    forgetting: ForgettingOut | None


class BaseOut(Answer):
    """The base model without an adapter."""

    metric: Estimate | None


class ComparisonOut(Answer):
    """Arm minus reference, positive when the arm is better.

    `look`: the one that decided it, or else the last. `kept`: the share of the reference's gain over the base
    model; null unless that gain is certain.
    """

    arm: str
    reference: str
    difference: float
    low: float
    high: float
    p_adjusted: float
    look: int
    outcome: str
    kept: Estimate | None


class AdditionOut(Answer):
    """Seeds added after the start. `after_result`: whether a result was known then."""

    at: Time
    seeds: list[int]
    after_result: bool


class EndingOut(Answer):
    """The end of a study that left out runs of its plan, at look `look` of `looks` with `seeds` seeds.

    `reason`: `decided` if every arm was, `time_spent` if `max_hours` were, or "" if some arms were decided
    before the others.
    """

    reason: str
    look: int
    looks: int
    seeds: int
    runs_left_out: int
    runs: int


class StudyOut(Answer):
    """A study. `verdict`, `items` and `groups` are null before its end.

    `ending`: why it has fewer runs than planned; null before the end and with all runs.

    `test_sha256`: hash of the test split; other test rows are refused.
    """

    id: int
    name: str
    state: str
    dataset: int
    test_sha256: str | None
    base_model: int
    budget: str
    metric: str
    pattern: str
    reference: str
    margin: float
    seeds: list[int]
    max_hours: float | None
    reuse: bool
    additions: list[AdditionOut]
    ending: EndingOut | None
    arms: list[ArmOut]
    base: BaseOut
    comparisons: list[ComparisonOut]
    items: int | None
    groups: int | None
    verdict: str | None
    error: Failure | None


class ScoreOut(Answer):
    """The score of an item; items of one `group` depend on each other. Base model: arm `base`, no seed."""

    arm: str
    seed: int | None
    item: int
    group: int
    value: float


class MarksOut(Answer):
    """Marks of 0 or 1 for the general questions, in the order of the file with this SHA-256.

    The base model is arm `base` without a seed.
    """

    arm: str
    seed: int | None
    version: int
    sha256: str
    choices: int
    marks: list[int]


class ExportOut(Answer):
    """The inputs of the verdict and of the forgetting results; empty before the end."""

    study: StudyOut
    settings: list[dict[str, Any]]
    scores: list[ScoreOut]
    general_questions: list[MarksOut]


@router.get("", response={200: list[StudyOut], **READING})
@listing(Newest)
def index(request: Call) -> Rows:
    """List the project's studies."""
    # An ended study has its answer as text; only the others are read as a whole.
    studies = Study.objects.visible_to(request.auth).only("finished_at")
    studies = studies.annotate(summary_text=Cast("stored_summary", TextField()))
    whole: dict[int, Study] = {}

    def fetch(page: list[Study]) -> None:
        whole.update(Study.objects.with_facts().in_bulk([one.pk for one in page if not has_summary(one)]))

    return Rows(
        studies,
        lambda one: study_dict(whole[one.pk]) if one.pk in whole else one.summary_text.encode(),
        fetch,
    )


def has_summary(study: Study) -> bool:
    """Return whether the answer was stored at the end of a study of the list."""
    return study.is_over and study.summary_text != "{}"  # type: ignore[attr-defined]


@router.get("/{int:pk}", response={200: StudyOut, **READING})
def detail(request: Call, pk: int) -> dict[str, Any]:
    """Return one study."""
    study = Study.objects.for_lists().fetch(request.auth, pk)
    Study.objects.fetch_facts_of_open([study])
    return study_dict(study)


@router.post("", response={202: StudyOut, **WRITING})
def create(request: Call, payload: StudyIn) -> Status[dict[str, Any]]:
    """Queue a study: one job for each seed trains all arms.

    Arms that require a dedicated base model, such as those with DoRA, have jobs of their own.

    409 `over_budget`: the study exceeds what is left of the project's monthly compute budget.
    """
    job = once(request, Job.Kind.TRAIN, lambda key: launch(request, payload, key), Job.Kind.EVALUATE)
    study = Study.objects.with_facts().of_job(job).first()
    if study is None:
        message = _("This `Idempotency-Key` was used for a different request. Choose a new one.")
        raise invalid("Idempotency-Key", message)
    return Status(202, study_dict(study))


def launch(request: Call, payload: StudyIn, key: str) -> Job:
    """Launch the study and return its first job. Ids refer to objects that the caller may see."""
    version = newest_version(request, payload.dataset)
    base_model = require_inspected(chosen_base_model(request, payload.base_model))
    plans = plans_of(request, payload.arms, RunForecaster.load(base_model, version))
    # The other fields have the names that the launch gives them; null is its default.
    given = payload.dict(exclude={"dataset", "base_model", "arms"}, exclude_none=True)
    with request_field_names():
        study = launch_study(
            project=request.auth.project,
            by=request.auth.user,
            dataset_version=version,
            base_model=base_model,
            arms=plans,
            idempotency_key=key,
            **given,
        )
    return cast("Job", study.jobs().order_by("pk").first())


@contextmanager
def request_field_names() -> Iterator[None]:
    """Rename the field of a SpecError from the run's setting to the request's."""
    try:
        yield
    except SpecError as error:
        field = {"seed": "seeds", "learning_rate": "learning_rates"}.get(error.field, error.field)
        raise SpecError(field, error.message) from error


def plans_of(request: Call, arms: list[ArmIn], forecaster: RunForecaster) -> list[ArmPlan]:
    """Return the arms, whose automatic length is that of the slowest."""
    chosen = [chosen_arm(request, arm, number) for number, arm in enumerate(arms)]
    configs = [config for _name, config, _settings in chosen]
    settings = [settings for _name, _config, settings in chosen]
    learns = with_equal_length(settings, [one.resolve(forecaster, configs) for one in settings])
    return [ArmPlan(name, config, learn) for (name, config, _), learn in zip(chosen, learns, strict=True)]


def chosen_arm(request: Call, arm: ArmIn, number: int) -> tuple[str, TargetModuleConfig, ChosenSettings]:
    """Return name, config and chosen settings of an arm."""
    try:
        config: TargetModuleConfig = config_of(request, arm.target_module_config)
    except Refusal as error:
        raise Refusal(error.status, error.code, error.message, f"arms.{number}.{error.field}") from error
    name = arm.name or config.slug or config.name
    if not name:
        raise invalid(f"arms.{number}.name", _("Give this arm a name."))
    try:
        return name, config, (arm.hyperparameters or HyperparametersIn()).chosen()
    except SpecError as error:
        raise invalid(f"arms.{number}.hyperparameters.{error.field}", error.message) from error


@router.post("/{int:pk}/cancel", response={202: StudyOut, **WRITING})
def cancel(request: Call, pk: int, payload: Nothing | None = None) -> Status[dict[str, Any]]:
    """Stop all jobs of the study. Finished runs keep their adapters."""
    study = Study.objects.fetch(request.auth, pk, Role.EDITOR)

    def stop() -> None:
        if not study.stop(request.auth.user):
            raise Refusal(
                409, "already_ended", _("The study has already ended: %(state)s.") % {"state": study.state}
            )

    do_once(request, f"cancel study {pk}", stop)
    # Outside of the transaction, because it may take long.
    study.advance()
    return Status(202, detail(request, pk))


@router.post("/{int:pk}/seeds", response={202: StudyOut, **WRITING})
def seeds(request: Call, pk: int, payload: SeedsIn) -> Status[dict[str, Any]]:
    """Train the reference and the arms that are not decided with more seeds, and recompute the verdict.

    Finished runs are kept. In an ended study new seeds take the place of planned ones that were not begun.
    """
    study = Study.objects.fetch(request.auth, pk, Role.EDITOR)
    try:
        with request_field_names():
            do_once(request, f"seeds {pk}", lambda: add_seeds(study, payload.seeds, request.auth.user))
    except IllegalMove as refusal:
        raise Refusal(409, "not_extendable", str(refusal)) from refusal
    return Status(202, detail(request, pk))


@router.post("/{int:pk}/score", response={202: StudyOut, **WRITING})
def score(request: Call, pk: int, payload: Nothing | None = None) -> Status[dict[str, Any]]:
    """Re-evaluate adapters whose evaluation failed or was stopped. The verdict then includes them.

    409 `not_scorable`: no adapter needs a re-evaluation; 409 `over_budget`.
    """
    submit_reevaluation(request, Study.objects.fetch(request.auth, pk, Role.EDITOR))
    return Status(202, detail(request, pk))


@router.get("/{int:pk}/export", response={200: ExportOut, **READING})
def export(request: Call, pk: int) -> HttpResponse:
    """Return settings and scores, from which each number of the verdict can be recomputed.

    `scores` is empty until the study has ended, also while added seeds are trained.
    """
    return write(export_dict(Study.objects.with_facts().fetch(request.auth, pk)))
