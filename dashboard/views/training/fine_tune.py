"""The fine-tune form, and the live preset cards and forecast beside it."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_GET, require_http_methods

from dashboard.forms.training.hyperparameters import defaults
from dashboard.forms.training.plan import cards_with_forecast, plan_run
from dashboard.forms.training.retry import changes, overrides
from dashboard.forms.training.training_runs import TrainingRunForm, initial_from
from dashboard.gate import Request
from dashboard.models import Calibration, Dataset, Role, TrainingRun
from dashboard.models.accounts.project import parse_id
from dashboard.models.studies.results.evidence import Preference, outcomes_by_config, preference
from dashboard.views.training.launch import launched_once
from workers.contract.errors import SpecError, TargetError
from workers.target_modules.presets import RECOMMENDED, RECOMMENDED_LABEL, RECOMMENDED_WHY


@require_http_methods(["GET", "POST"])
def create(request: Request) -> HttpResponse:
    """Show the fine-tune form, or launch its run; the form's key makes a double click launch one run.

    An equal run that has finished is shown instead, unless `again` asks for another one.
    """
    request.project.require(request.user, Role.EDITOR)
    if request.method == "POST":
        form = TrainingRunForm(request.POST, caller=request.user, project=request.project, initial={})
        if "again" not in request.POST and (equal_run := finished_equal(request, form)):
            context = {**form_context(form, form, preference_of(form)), "equal_run": equal_run}
            return render(request, "training/create.html", context, status=409)
        run = launched_once(form, TrainingRun.objects.launched_with, partial(launch, request, form))
        if run is not None:
            return redirect(run)
        context = form_context(form, form, preference_of(form))
        return render(request, "training/create.html", context, status=422)
    form = TrainingRunForm(caller=request.user, project=request.project, initial=prefilled(request))
    preferred = choose_defaults(form)
    context = {**form_context(form, form.draft(), preferred), **changed_context(request)}
    return render(request, "training/create.html", context)


@require_GET
def presets(request: Request) -> HttpResponse:
    """Render the preset cards for the base model and rank in the form."""
    form = TrainingRunForm(request.GET, caller=request.user, project=request.project, initial={})
    form.full_clean()
    return render(request, "training/_presets.html", plan_context(form, preference_of(form)))


@require_GET
def forecast(request: Request) -> HttpResponse:
    """Render the forecast of the form: memory, time, size, changed settings and missing choices.

    Memory and time of the preset cards are included.
    """
    form = TrainingRunForm(request.GET, caller=request.user, project=request.project, initial={})
    form.full_clean()
    plan = plan_run(form)
    context = {"plan": plan, "cards": cards_with_forecast(form, plan)}
    return render(request, "training/_forecast_live.html", context)


def launch(request: Request, form: TrainingRunForm, key: str) -> TrainingRun:
    """Launch the run of a valid form."""
    run = frozen(request, form)
    run.launch(key)
    return run


def finished_equal(request: Request, form: TrainingRunForm) -> TrainingRun | None:
    """Return a finished run that equals the form's; None if there is none or the form is not valid."""
    try:
        return TrainingRun.objects.finished_equal(frozen(request, form)) if form.is_valid() else None
    except (SpecError, TargetError):
        return None


def frozen(request: Request, form: TrainingRunForm) -> TrainingRun:
    """Return the unsaved run of a valid form. Raises SpecError or TargetError."""
    values = form.cleaned_data
    run = TrainingRun(
        project=request.project,
        created_by=request.user,
        name=values["name"],
        dataset_version=values["dataset_version"],
        validation_version=values["validation_version"],
        base_model=values["base_model"],
        target_module_config=values["target_module_config"],
    )
    run.freeze(values["hyperparameters"], confirmed=form.is_confirmed())
    return run


def prefilled(request: Request) -> dict[str, Any]:
    """Return initial values from the query: ?clone=RUN with settings, or ?dataset=ID and ?base_model=ID."""
    names = ("clone", "dataset", "base_model")
    clone, dataset, base_model = (parse_id(request.GET.get(name, "")) for name in names)
    if clone is not None:
        run = TrainingRun.objects.fetch(request.user, clone)
        return {**initial_from(run), **overrides(request.GET)}
    initial: dict[str, Any] = {}
    if dataset is not None:
        version = Dataset.objects.fetch(request.user, dataset).newest_ready()
        initial = {"dataset_version": version.pk} if version else {}
    if base_model is not None:
        initial["base_model"] = base_model
    return initial


def changed_context(request: Request) -> dict[str, Any]:
    """Return the cloned run and the settings that the link changed."""
    pk = parse_id(request.GET.get("clone", ""))
    if pk is None:
        return {}
    source = TrainingRun.objects.fetch(request.user, pk)
    changed = changes(source, overrides(request.GET))
    # The changed settings are shown open.
    return {"source": source, "changes": changed} | ({"expert_open": True} if changed else {})


def choose_defaults(form: TrainingRunForm) -> Preference | None:
    """Preselect the bundled model, the preset that studies or the product recommend, and a sole dataset.

    Return what studies recommend.
    """
    form.choose_data()
    offered = {config.pk: config for config in form.offered}
    usual = next((pk for pk, config in offered.items() if config.slug == RECOMMENDED), None)
    preferred = preference(form.project, form.initial["base_model"])
    if preferred and preferred.config_id in offered:
        usual = preferred.config_id
    form.initial.setdefault("target_module_config", usual)
    return preferred


def preference_of(form: TrainingRunForm) -> Preference | None:
    """Return what studies recommend on the base model of a form whose fields have been cleaned."""
    base_model = form.cleaned_data.get("base_model")
    return preference(form.project, base_model.pk) if base_model else None


def form_context(
    form: TrainingRunForm, draft: TrainingRunForm, preferred: Preference | None
) -> dict[str, Any]:
    """Return the context of the form's page: fields from `form`, forecast from `draft`."""
    return {"form": form, "suggestions": {"defaults": defaults()}, **plan_context(draft, preferred)}


def plan_context(form: TrainingRunForm, preferred: Preference | None) -> dict[str, Any]:
    """Return the context of both live regions. `preferred`: what studies recommend."""
    plan = plan_run(form)
    cards = cards_with_forecast(form, plan)
    if plan.base_model and cards:
        outcomes = outcomes_by_config(form.project, plan.base_model)
        costs = Calibration.objects.costs_by_config(form.project, plan.base_model)
        cards = [
            replace(card, measured=outcomes.get(card.config.pk, ""), cost=costs.get(card.config.pk))
            for card in cards
        ]
    return {
        "plan": plan,
        "cards": cards,
        "preferred": preferred,
        "rank": plan.hyperparameters.r,
        "recommended_label": RECOMMENDED_LABEL,
        "recommended_why": RECOMMENDED_WHY,
    }
