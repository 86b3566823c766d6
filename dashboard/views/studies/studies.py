"""Studies: the form with its live plan, the list, a study's page with its live grid, stop, added seeds."""

from __future__ import annotations

from functools import partial
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from dashboard.forms.studies.studies import CARRIED, StudyForm
from dashboard.forms.studies.study_costs import plan_study
from dashboard.forms.studies.study_results import MOST_SEEDS_AT_ONCE, SeedsForm
from dashboard.forms.training.plan import preset_cards
from dashboard.forms.training.training_runs import initial_from
from dashboard.gate import Request
from dashboard.models import Dataset, IllegalMove, OverBudget, Role, State, Study, TrainingRun
from dashboard.models.accounts.project import parse_id
from dashboard.models.studies.added_seeds import add_seeds
from dashboard.models.studies.launch import launch_study
from dashboard.models.studies.looks import open_arms
from dashboard.models.studies.plan import MOST_SEEDS, suggested_rates
from dashboard.models.studies.results.limits import added_seeds
from dashboard.models.studies.results.verdict_sentence import advised_seeds
from dashboard.presenters.playground import study_adapters, try_url
from dashboard.presenters.study_grid import grid_of
from dashboard.views.evaluations.evaluations import unscored_study_notice
from dashboard.views.kept_parts import KeptParts
from dashboard.views.studies.study_results import ended_context, kept_parts
from dashboard.views.training.launch import launched_once
from workers.contract.errors import SpecError, TargetError

# The longest value of a query parameter.
VALUE_LENGTH = 40


# The form


@require_http_methods(["GET", "POST"])
def create(request: Request) -> HttpResponse:
    """Show the study form, or launch the study; a double click launches one, as the key is the same.

    A fine-tune form that is posted here with `carry` prefills the study form by a redirect.
    """
    request.project.require(request.user, Role.EDITOR)
    if "carry" in request.POST:
        values = {name: request.POST[name][:VALUE_LENGTH] for name in CARRIED if name in request.POST}
        values["also"] = request.POST.get("target_module_config", "")[:VALUE_LENGTH]
        return redirect(f"{reverse('study-create')}?{urlencode(values)}")
    if request.method == "POST":
        form = StudyForm(request.POST, caller=request.user, project=request.project, initial={})
        study = launched_once(form, Study.objects.launched_with, partial(launch, request, form))
        if study is not None:
            return redirect(study)
        return render(request, "studies/create.html", form_context(form, form), status=422)
    form = StudyForm(caller=request.user, project=request.project, initial=prefilled(request))
    choose_defaults(form)
    return render(request, "studies/create.html", form_context(form, form.draft()))


@require_GET
def plan(request: Request) -> HttpResponse:
    """Show the plan of the form as it stands: runs, time, disk, and the difference it can detect."""
    form = StudyForm(request.GET, caller=request.user, project=request.project, initial={})
    form.full_clean()
    return render(request, "studies/_plan_live.html", {"study_plan": plan_study(form), "form": form})


@require_GET
def arms(request: Request) -> HttpResponse:
    """Show the configs of the base model in the form; ticked ones stay ticked."""
    form = StudyForm(request.GET, caller=request.user, project=request.project, initial={})
    form.full_clean()
    return render(request, "studies/_arms.html", {"study_plan": plan_study(form), "form": form})


def launch(request: Request, form: StudyForm, key: str) -> Study:
    """Launch the study of a valid form."""
    values = form.cleaned_data
    return launch_study(
        project=request.project,
        by=request.user,
        name=values["name"],
        dataset_version=values["dataset_version"],
        base_model=values["base_model"],
        arms=values["arms"],
        seeds=range(1, values["seeds"] + 1),
        budget=values["budget"],
        metric=values["metric"],
        pattern=values["pattern"],
        reference=form.reference(),
        margin=form.margin_in_unit(),
        learning_rates=values["learning_rates"],
        test_rows=values["test_rows"],
        max_hours=values["max_hours"],
        reuse=not values["again"],
        confirmed=form.is_confirmed(),
        idempotency_key=key,
    )


def prefilled(request: Request) -> dict[str, Any]:
    """Return initial values from the query: ?run=ID, ?dataset=ID, or the fields of a fine-tune form."""
    run_id, dataset, also = (parse_id(request.GET.get(name, "")) for name in ("run", "dataset", "also"))
    if run_id is not None:
        run = TrainingRun.objects.fetch(request.user, run_id)
        values = initial_from(run)
        return {name: values[name] for name in CARRIED if name in values} | {
            "also": run.target_module_config_id
        }
    initial: dict[str, Any] = {}
    if dataset is not None:
        version = Dataset.objects.fetch(request.user, dataset).newest_ready()
        initial = {"dataset_version": version.pk} if version else {}
    given = {name: request.GET[name][:VALUE_LENGTH] for name in CARRIED if name in request.GET}
    return {**initial, **given, "also": also}


def choose_defaults(form: StudyForm) -> None:
    """Preselect the bundled model, a sole dataset, and every preset that resolves on the model."""
    form.choose_data()
    base_model = form.initial_base_model()
    cards = preset_cards(form.offered, base_model) if base_model else []
    refused = {card.config.pk for card in cards if card.resolution.refusal}
    also = form.initial.pop("also", None)
    ticked = [
        one for one in form.offered if (one.project_id is None or one.pk == also) and one.pk not in refused
    ]
    form.initial["configs"] = [config.pk for config in ticked]
    quality = (config.pk for config in ticked if config.slug == "quality")
    form.initial["compared_with"] = next(quality, next(iter(form.initial["configs"]), None))


def form_context(form: StudyForm, draft: StudyForm) -> dict[str, Any]:
    """Return the context of the form's page: fields from `form`, numbers from `draft`."""
    rates = {model.pk: suggested_rates(model.parameters) for model in form.offer.base_models}
    return {
        "form": form,
        "study_plan": plan_study(draft),
        "blank_arm": form.further.empty_form,
        "suggestions": {"rates": rates},
    }


# The list


@require_GET
def index(request: Request) -> HttpResponse:
    """Show the project's studies, newest first."""
    studies = Study.objects.for_lists().filter(project=request.project).visible_to(request.user)
    page, following = studies.page(request.GET.get("cursor"))
    Study.objects.fetch_facts_of_open(page)
    rows = [
        {
            "study": study,
            "grid": None if study.is_over else grid_of(study),
            "verdict": study.summary.get("verdict"),
            "arms": len(study.summary["arms"] if study.is_over else study.arm_list),
        }
        for study in page
    ]
    return render(request, "studies/index.html", {"rows": rows, "next": following})


# A study's page


@require_GET
def detail(request: Request, pk: int) -> HttpResponse:
    study = Study.objects.with_names().fetch(request.user, pk)
    context: dict[str, Any] = {"study": study, "added_seeds": added_seeds(study)}
    if study.is_over:
        parts = kept_parts(request, study)
        context |= ended_context(study, parts, request.user)
        context["try_url"] = parts.once("try_url", lambda whole: try_url(study_adapters(whole)))
        context |= seeds_context(study, parts) if context["may_edit"] else {}
    else:
        Study.objects.fetch_facts_of_open([study])
        may_edit = request.user.has_role(Role.EDITOR, study.project_id)
        context |= grid_context(study, may_edit=may_edit)
        context["can_stop"] = may_edit and study.state != State.CANCELLING
    return render(request, "studies/detail.html", context)


@require_GET
def grid(request: Request, pk: int) -> HttpResponse:
    """Show the live grid alone; reload the page of a study that has ended meanwhile."""
    study = Study.objects.with_facts().fetch(request.user, pk)
    may_edit = request.user.has_role(Role.EDITOR, study.project_id)
    answer = render(request, "studies/_grid.html", grid_context(study, may_edit=may_edit))
    if study.is_over:
        answer.headers["HX-Refresh"] = "true"
    return answer


@require_POST
def cancel(request: Request, pk: int) -> HttpResponse:
    """Stop every job of a study; finished runs keep their adapters."""
    study = Study.objects.fetch(request.user, pk, Role.EDITOR)
    if not study.request_cancel(request.user):
        messages.warning(request, _("The study had already ended."))
    return redirect(study)


@require_POST
def seeds(request: Request, pk: int) -> HttpResponse:
    """Train every arm with more seeds."""
    study = Study.objects.fetch(request.user, pk, Role.EDITOR)
    form = SeedsForm(request.POST)
    if not form.is_valid():
        for errors in form.errors.values():
            messages.error(request, str(errors[0]))
    elif not set(form.seeds()) <= set(study.kept_seeds):  # a double click adds them once
        try:
            add_seeds(study, form.seeds(), request.user)
        except (IllegalMove, OverBudget) as refusal:
            messages.error(request, str(refusal))
        except (SpecError, TargetError) as refusal:
            messages.error(request, refusal.message)
    return redirect(study)


def seeds_context(study: Study, parts: KeptParts[Study]) -> dict[str, Any]:
    """Return the form that adds seeds, for studies that came to a result."""
    kept, has_open_arms = parts.once("seeds", lambda whole: (whole.kept_seeds, bool(open_arms(whole))))
    if study.state != State.SUCCEEDED or not has_open_arms or len(kept) >= MOST_SEEDS:
        return {}
    advised = advised_seeds(study)
    first = {"count": min(advised or 2, MOST_SEEDS_AT_ONCE), "first": max(kept, default=0) + 1}
    return {"seeds_form": SeedsForm(initial=first), "advised_seeds": advised}


def grid_context(study: Study, *, may_edit: bool) -> dict[str, Any]:
    """Return the values of the live region, all from the database."""
    return {
        "study": study,
        "grid": grid_of(study, with_starts=True),
        "may_edit": may_edit,
        "unscored": unscored_study_notice(study),
    }
