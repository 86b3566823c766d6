"""Actions on several ticked runs or adapters: compare, download, tag, delete; and one run's notes."""

from __future__ import annotations

from django.contrib import messages
from django.db import transaction
from django.http import Http404, HttpResponse, HttpResponseBase, QueryDict
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django.views.decorators.http import require_POST

from dashboard.downloads import zip_of
from dashboard.forms.training.run_list import RunListForm
from dashboard.forms.training.run_notes import RunNotesForm, TagForm
from dashboard.gate import Request
from dashboard.models import Role, SavedView, Tag, TrainingRun
from dashboard.models.accounts.project import parse_id
from dashboard.models.operations.run_deletion import delete_runs, deletion_refusal
from dashboard.views.training.run_list import TABLES

# Each download copies the adapters into one file.
MOST_DOWNLOADED = 20
MOST_BYTES = 4 * 10**9


@require_POST
def select(request: Request) -> HttpResponseBase:
    """Do with the ticked runs what the pressed button says; 404 if one is not in the project."""
    runs, action = ticked_runs(request), request.POST.get("do", "")
    if action in ("tag", "untag", "delete"):
        request.project.require(request.user, Role.EDITOR)
    if not runs:
        messages.warning(request, _("Tick at least one row first."))
        return back(request)
    if action == "compare":
        return redirect(f"{reverse('compare')}?runs={','.join(str(run.pk) for run in runs)}")
    if action == "download":
        return download(request, runs)
    if action in ("tag", "untag"):
        return change_tag(request, runs, is_added=action == "tag")
    if action == "delete":
        return delete(request, runs)
    messages.error(request, _("Choose what to do with the ticked rows."))
    return back(request)


def ticked_runs(request: Request) -> list[TrainingRun]:
    """Return the ticked runs, the newest first."""
    keys = {parse_id(text) or 0 for text in request.POST.getlist("runs")}
    runs = TrainingRun.objects.with_scores().filter(project=request.project).visible_to(request.user)
    found = list(runs.select_related("job", "study_arm__study", "adapter").filter(pk__in=keys))
    if len(found) < len(keys):
        raise Http404
    return found


def back(request: Request) -> HttpResponse:
    """Return to the list as it was."""
    page = request.POST.get("page", "")
    page = page if page in TABLES else SavedView.Page.RUNS
    query = QueryDict(request.POST.get("query", "")[:2000])
    form = RunListForm(query, project=request.project, columns=TABLES[SavedView.Page(page)].columns)
    return redirect(f"{reverse(page)}?{form.address()}")


def download(request: Request, runs: list[TrainingRun]) -> HttpResponseBase:
    """Download the adapters of the runs as one zip; runs without an adapter are named."""
    adapters = [run.adapter for run in runs if hasattr(run, "adapter")]
    if not adapters:
        messages.warning(request, _("None of these runs has an adapter to download."))
        return back(request)
    if len(adapters) > MOST_DOWNLOADED or sum(adapter.size_bytes for adapter in adapters) > MOST_BYTES:
        text = _("One download takes at most %(most)d adapters and %(size)d GB. Tick fewer rows.")
        messages.warning(request, text % {"most": MOST_DOWNLOADED, "size": MOST_BYTES // 10**9})
        return back(request)
    members = {}
    for adapter in adapters:
        try:
            members[f"{adapter.pk}-{adapter.archive_name()}"] = adapter.archive()
        except FileNotFoundError:
            text = _("The files of %(adapter)s are no longer on this machine, so nothing was downloaded.")
            messages.error(request, text % {"adapter": adapter})
            return back(request)
    return zip_of("adapters.zip", members)


def change_tag(request: Request, runs: list[TrainingRun], *, is_added: bool) -> HttpResponse:
    """Add a tag to the runs or remove it."""
    form = TagForm(request.POST)
    if not form.is_valid():
        messages.error(request, str(form.errors["tag"][0]))
        return back(request)
    name = form.cleaned_data["tag"]
    if is_added:
        Tag.objects.attach(runs, Tag.objects.named(request.project, [name])[0])
        text = ngettext("Tagged %(count)d run “%(tag)s”.", "Tagged %(count)d runs “%(tag)s”.", len(runs))
        messages.success(request, text % {"count": len(runs), "tag": name})
        return back(request)
    tag = Tag.objects.filter(project=request.project, name=name).first()
    if tag is None:
        messages.warning(request, _("This project has no tag “%(tag)s”.") % {"tag": name})
    else:
        Tag.objects.detach(runs, tag)
        messages.success(request, _("Removed the tag “%(tag)s” from the ticked runs.") % {"tag": name})
    return back(request)


def delete(request: Request, runs: list[TrainingRun]) -> HttpResponse:
    """Show what would be deleted and what cannot be, or delete it once that is confirmed."""
    if request.POST.get("confirmed") != "yes":
        refusals = [(run, deletion_refusal(run)) for run in runs]
        context = {
            "page": request.POST.get("page", ""),
            "query": request.POST.get("query", "")[:2000],
            "back": back(request).headers["Location"],
            "deletable": [run for run, refusal in refusals if not refusal],
            "kept": [(run, refusal) for run, refusal in refusals if refusal],
        }
        return render(request, "training/delete.html", context)
    deleted = delete_runs(request.project, [run.pk for run in runs])
    kept = len(runs) - len(deleted)
    text = ngettext("Deleted %(count)d run.", "Deleted %(count)d runs.", len(deleted))
    messages.success(request, text % {"count": len(deleted)})
    if kept:
        text = ngettext(
            "%(count)d run was kept: it can no longer be deleted.",
            "%(count)d runs were kept: they can no longer be deleted.",
            kept,
        )
        messages.warning(request, text % {"count": kept})
    return back(request)


@require_POST
def annotate(request: Request, pk: int) -> HttpResponse:
    """Replace the tags and the note of a run."""
    run = TrainingRun.objects.fetch(request.user, pk, Role.EDITOR)
    form = RunNotesForm(request.POST)
    if not form.is_valid():
        for errors in form.errors.values():
            messages.error(request, str(errors[0]))
        return redirect(run)
    with transaction.atomic():
        Tag.objects.set_all(run, form.cleaned_data["tags"])
        TrainingRun.objects.filter(pk=run.pk).update(note=form.cleaned_data["note"])
    messages.success(request, _("Tags and note are saved."))
    return redirect(run)
