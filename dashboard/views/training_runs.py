"""Training runs: the fine-tune form with its live plan, the list, and a run's page with its live region."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.conf import settings
from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from dashboard import charts
from dashboard.forms.comparison import compared
from dashboard.forms.plan import Plan, cards_of, differences, label_of, plan, worded
from dashboard.forms.retry import changes, overrides, retries
from dashboard.forms.training_runs import (
    SAMPLE_LEARNING_RATE,
    TrainingRunForm,
    defaults,
    initial_for,
    initial_from,
    is_sample,
)
from dashboard.gate import Request
from dashboard.models import (
    Calibration,
    Dataset,
    EvaluationItem,
    IllegalMove,
    Job,
    JobEvent,
    OverBudget,
    Role,
    State,
    TargetModuleConfig,
    TrainingRun,
    WorkerNode,
)
from dashboard.models.queue import Outlook
from dashboard.models.study_evidence import preference, told_by_config
from dashboard.stages import PHASES, eta_range, stages, stopping_words
from dashboard.views.launching import launched_once
from workers.errors import ADVICE
from workers.presets import RECOMMENDED, RECOMMENDED_LABEL, RECOMMENDED_WHY
from workers.specs import Hyperparameters

SAMPLES_PER_PAGE = 10
EVENTS_SHOWN = 200
GROUPS = {
    "active": gettext_lazy("Waiting or working"),
    "finished": gettext_lazy("Finished"),
    "failed": gettext_lazy("Failed"),
    "cancelled": gettext_lazy("Stopped"),
}


# The form


@require_http_methods(["GET", "POST"])
def create(request: Request) -> HttpResponse:
    """The fine-tune form. A double click starts one run, as both requests carry the same key."""
    request.project.require(request.user, Role.EDITOR)
    if request.method == "POST":
        form = TrainingRunForm(request.POST, caller=request.user, project=request.project, initial={})
        run = launched(request, form)
        if run is not None:
            return redirect(run)
        return render(request, "training_runs/create.html", form_context(form, form), status=422)
    form = TrainingRunForm(caller=request.user, project=request.project, initial=prefilled(request))
    choose_defaults(form)
    context = {**form_context(form, drafted(request, form)), **changed_context(request)}
    return render(request, "training_runs/create.html", context)


@require_GET
def presets(request: Request) -> HttpResponse:
    """The preset cards for the base model and rank in the form, keeping the choice."""
    form = TrainingRunForm(request.GET, caller=request.user, project=request.project, initial={})
    form.full_clean()
    return render(request, "training_runs/_presets.html", plan_context(form))


@require_GET
def forecast(request: Request) -> HttpResponse:
    """What the form as it stands would start: memory, time, size, what differs, what is missing.

    Memory and time on the preset cards come along.
    """
    form = TrainingRunForm(request.GET, caller=request.user, project=request.project, initial={})
    form.full_clean()
    found = plan(form)
    context = {"plan": found, "cards": cards_of(form, found)}
    return render(request, "training_runs/_forecast_live.html", context)


def launched(request: Request, form: TrainingRunForm) -> TrainingRun | None:
    """The run that the form asks for, or None with the form saying why not."""

    def launch(key: str) -> TrainingRun:
        values = form.cleaned_data
        return TrainingRun.objects.launch(
            project=request.project,
            by=request.user,
            name=values["name"],
            dataset_version=values["dataset_version"],
            base_model=values["base_model"],
            target_module_config=values["target_module_config"],
            hyperparameters=values["hyperparameters"],
            confirmed=form.is_confirmed(),
            idempotency_key=key,
        )

    return launched_once(form, lambda key: TrainingRun.objects.launched_with(request.project, key), launch)


def prefilled(request: Request) -> dict[str, Any]:
    """What the link brings: ?clone=RUN with changed settings, or ?dataset=ID and ?base_model=ID."""
    numbers = asked(request)
    if "clone" in numbers:
        run = TrainingRun.objects.fetch(request.user, numbers["clone"])
        return {**initial_from(run), **overrides(request.GET)}
    initial: dict[str, Any] = {}
    if "dataset" in numbers:
        initial = initial_for(Dataset.objects.fetch(request.user, numbers["dataset"]).newest_ready())
    if "base_model" in numbers:
        initial["base_model"] = numbers["base_model"]
    return initial


def asked(request: Request) -> dict[str, int]:
    """The rows that the link names; what is no number names none."""
    texts = {name: request.GET.get(name, "") for name in ("clone", "dataset", "base_model")}
    return {name: int(text) for name, text in texts.items() if text.isdecimal() and len(text) < 19}


def changed_context(request: Request) -> dict[str, Any]:
    """The earlier run that the form was filled in from, and what the link changed in its settings."""
    pk = asked(request).get("clone")
    if pk is None:
        return {}
    source = TrainingRun.objects.fetch(request.user, pk)
    changed = changes(source, overrides(request.GET))
    # What changed is to be seen where it can be changed again.
    return {"source": source, "changes": changed} | ({"expert_open": True} if changed else {})


def choose_defaults(form: TrainingRunForm) -> None:
    """Preselect the bundled model, the preset that studies or else we recommend, and a lone dataset."""
    form.initial.setdefault("base_model", form.base_models.values_list("pk", flat=True).first())
    recommended = TargetModuleConfig.objects.filter(project=None, slug=RECOMMENDED)
    usual = recommended.values_list("pk", flat=True).first()
    preferred = preference(form.project, form.initial["base_model"])
    if preferred and any(config.pk == preferred.config_id for config in form.configs):
        usual = preferred.config_id
    form.initial.setdefault("target_module_config", usual)
    ready = list(form.versions[:2])
    if len(ready) == 1 and "dataset_version" not in form.initial:
        form.initial.update(initial_for(ready[0]))


def drafted(request: Request, form: TrainingRunForm) -> TrainingRunForm:
    """The form as if it had been sent the way it is prefilled, to reckon with."""
    data = {name: "" if value is None else value for name, value in form.initial.items()}
    draft = TrainingRunForm(data, caller=request.user, project=request.project, initial={})
    draft.full_clean()
    return draft


def form_context(form: TrainingRunForm, draft: TrainingRunForm) -> dict[str, Any]:
    """The form's page: fields from `form`, numbers from `draft`."""
    expert = (
        "r",
        "lora_alpha",
        "lora_dropout",
        "learning_rate",
        "lr_scheduler_type",
        "warmup_ratio",
        "loraplus_lr_ratio",
        "autocast_adapter_dtype",
        "use_rslora",
        "use_dora",
    )
    batch = (
        "per_device_train_batch_size",
        "gradient_accumulation_steps",
        "max_length",
        "gradient_checkpointing",
        "load_in_4bit",
        "seed",
    )
    sample = [version.pk for version in form.versions if is_sample(version)]
    return {
        "form": form,
        "adapter_fields": [form[name] for name in expert],
        "batch_fields": [form[name] for name in batch],
        "has_datasets": form.versions.exists(),
        "expert_open": any(name in form.errors for name in (*expert, *batch)),
        "suggestions": {
            "samples": sample,
            "sampleRate": SAMPLE_LEARNING_RATE,
            "usualRate": Hyperparameters().learning_rate,
            "defaults": defaults(),
        },
        **plan_context(draft),
    }


def plan_context(form: TrainingRunForm) -> dict[str, Any]:
    """What both live regions of the form show."""
    found: Plan = plan(form)
    cards = cards_of(form, found)
    if found.base_model and cards:
        told = told_by_config(form.project, found.base_model)
        costs = Calibration.objects.costs_by_config(form.project, found.base_model)
        cards = [
            replace(card, measured=told.get(card.config.pk, ""), cost=costs.get(card.config.pk))
            for card in cards
        ]
    return {
        "plan": found,
        "cards": cards,
        "preferred": preference(form.project, found.base_model.pk) if found.base_model else None,
        "rank": found.hyperparameters.r,
        "recommended_label": RECOMMENDED_LABEL,
        "recommended_why": RECOMMENDED_WHY,
    }


# The list


@require_GET
def index(request: Request) -> HttpResponse:
    """The project's runs, newest first, by state and by words of the name."""
    runs = TrainingRun.objects.with_facts().with_scores().filter(project=request.project)
    # PostgreSQL refuses to look for a NUL, and no name has one.
    group, words = request.GET.get("state", ""), request.GET.get("q", "").replace("\0", "").strip()[:120]
    if group in GROUPS:
        runs = runs.shown_as(group)
    if words:
        runs = runs.filter(name__icontains=words)
    page, following = runs.visible_to(request.user).page(request.GET.get("cursor"))
    context = {"runs": page, "next": following, "groups": GROUPS, "group": group, "words": words}
    return render(request, "training_runs/index.html", context)


# A run's page


@require_GET
def detail(request: Request, pk: int) -> HttpResponse:
    """A run: live while it works, its failure or result first when it is over."""
    run = TrainingRun.objects.with_facts().with_scores().fetch(request.user, pk)
    context = {
        **progress_context(run),
        **samples_context(request, run),
        "may_edit": request.user.projects(Role.EDITOR).filter(pk=run.project_id).exists(),
        "score_rows": charts.score_rows(run.scores()),
        "settings": settings_of(run),
        "learn": Hyperparameters(**run.hyperparameters),
        "log": run.job.log_tail() if run.job else "",
        "table": curve_table(run),
        "finding": charts.finding(run.metric_series.filter(name="train/loss").first()),
        "look": charts.colours([run.pk])[run.pk],
        "advice": ADVICE.get((run.error or {}).get("code", ""), ""),
        "retries": retries(run),
        "compared": compared(run),
        # The same settings would fail the same way.
        "retry_first": (run.error or {}).get("code") in ("out_of_memory", "diverged"),
        **stop_context(run),
    }
    return render(request, "training_runs/detail.html", context)


@require_GET
def progress(request: Request, pk: int) -> HttpResponse:
    """The live region alone; ?part=cell is the short form of lists."""
    run = TrainingRun.objects.with_facts().with_scores().fetch(request.user, pk)
    if request.GET.get("part") == "cell":
        return render(request, "training_runs/_cell.html", {"run": run})
    return render(request, "training_runs/_progress.html", progress_context(run))


@require_http_methods(["GET", "POST"])
def cancel(request: Request, pk: int) -> HttpResponse:
    """Ask what shall stay of a run, and stop it. The question is a page of its own where no dialog opens."""
    run = TrainingRun.objects.with_facts().fetch(request.user, pk, Role.EDITOR)
    keep = request.POST.get("keep", "")
    if request.method == "GET" or keep not in Job.Keep.values:
        status = 200 if request.method == "GET" else 422
        return render(request, "training_runs/cancel.html", {"run": run, **stop_context(run)}, status=status)
    if run.job and not run.job.request_cancel(request.user, keep):
        messages.warning(request, _("It had ended already, or less of it is kept than you asked for."))
    return redirect(run)


@require_POST
def resume(request: Request, pk: int) -> HttpResponse:
    """Continue a run from its checkpoint, or say why that is not possible."""
    run = TrainingRun.objects.select_related("job").fetch(request.user, pk, Role.EDITOR)
    try:
        run.resume(request.user)
    except (IllegalMove, OverBudget) as refusal:
        messages.warning(request, str(refusal))
    return redirect(run)


def stop_context(run: TrainingRun) -> dict[str, Any]:
    """What the question before a stop needs to know, and what an ended run still offers."""
    waits = run.state in (State.QUEUED, State.INTERRUPTED)
    return {
        "can_stop": not run.is_over and run.job is not None and run.state != State.CANCELLING,
        # A run that works may have learned something by the time the question is answered.
        "can_keep": not waits or (run.job is not None and run.job.checkpoint_step() is not None),
        "resumable_from": run.resumable_from,
        "kept_days": settings.KEEP_CHECKPOINTS_DAYS,
    }


@require_GET
def log(request: Request, pk: int) -> HttpResponse:
    """The end of the run's log as plain text."""
    run = TrainingRun.objects.select_related("job").fetch(request.user, pk)
    text = run.job.log_tail() if run.job else ""
    return HttpResponse(text, content_type="text/plain; charset=utf-8")


@require_GET
def samples(request: Request, pk: int) -> HttpResponse:
    """One page of answers side by side."""
    run = TrainingRun.objects.fetch(request.user, pk)
    return render(request, "training_runs/_samples.html", samples_context(request, run))


def progress_context(run: TrainingRun) -> dict[str, Any]:
    """What the live region shows; everything comes from the database."""
    evaluation = next((one.job for one in run.evaluations.all() if one.job), None)
    working = evaluation if run.is_over and evaluation and not evaluation.is_over else run.job
    jobs = [job.pk for job in (run.job, evaluation) if job]
    events = JobEvent.objects.filter(job__in=jobs).order_by("-created_at", "-pk")[:EVENTS_SHOWN]
    node = WorkerNode.objects.filter(name=run.job.worker).first() if run.job and run.job.worker else None
    outlook = Outlook.read([working.queue]) if working and working.state == State.QUEUED else None
    waits = bool(working and working.state == State.QUEUED)
    no_4bit = waits and run.in_4bit and not WorkerNode.objects.packing().exists()
    return {
        "run": run,
        "working": working,
        "evaluation": evaluation,
        "phase": PHASES.get(working.phase, working.phase) if working else "",
        "stages": stages(run, evaluation),
        "position": outlook.places.get(working.pk) if working and outlook else None,
        "start": outlook.starts.get(working.pk) if working and outlook and not no_4bit else None,
        "stopping": stopping_words(run),
        "no_worker": waits and not worker_is_there(),
        "no_4bit": no_4bit,
        "eta": eta_range(working),
        "events": events,
        "latest": {series.name.replace("/", "_"): series for series in run.metric_series.all()},
        "device": node.device if node else run.measured.get("device", ""),
    }


def worker_is_there() -> bool:
    """Whether anything could take the run up."""
    return WorkerNode.objects.alive().filter(kind=WorkerNode.Kind.WORKER).exists()


def samples_context(request: Request, run: TrainingRun) -> dict[str, Any]:
    """Pairs of answers, filtered by ?samples= and paged by ?page=."""
    pairs = EvaluationItem.objects.pairs(run)
    groups = {
        "all": pairs,
        "changed": [(base, adapter) for base, adapter in pairs if base.output != adapter.output],
        "wrong": [(base, adapter) for base, adapter in pairs if not adapter.is_right],
    }
    chosen = request.GET.get("samples", "all")
    chosen = chosen if chosen in groups else "all"
    page = Paginator(groups[chosen], SAMPLES_PER_PAGE).get_page(request.GET.get("page"))
    counts = {name: len(group) for name, group in groups.items()}
    return {"run": run, "page": page, "chosen": chosen, "counts": counts}


def settings_of(run: TrainingRun) -> list[dict[str, Any]]:
    """Every setting with its default where it differs."""
    learn = Hyperparameters(**run.hyperparameters)
    changed = {name: default for name, _value, default in differences(learn)}
    return [
        {"name": name, "label": label_of(name), "value": worded(value), "default": changed.get(name)}
        for name, value in run.hyperparameters.items()
        if value is not None
    ]


def curve_table(run: TrainingRun) -> list[tuple[int, list[float | None]]]:
    """The twin of the chart."""
    stored = {series.name: series for series in run.metric_series.filter(name__in=charts.CURVES)}
    return charts.table({name: stored[name].points() if name in stored else [] for name in charts.CURVES})
