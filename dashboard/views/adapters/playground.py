"""The playground: a prompt to the base model and adapters side by side, answered as it is written."""

from __future__ import annotations

from django.http import Http404, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET, require_POST

from dashboard.chat_relay import ChatFailed, request_engine
from dashboard.forms.adapters import PreferenceForm, PromptForm
from dashboard.forms.prompt_sets import SavedPromptForm
from dashboard.forms.try_outs import TryOutLinkForm
from dashboard.gate import Request
from dashboard.models import BaseModel, BlindComparison, TryOutLink
from dashboard.presenters.playground import playground, revealed
from dashboard.views.adapters.answer_streams import (
    answers,
    blind_answers,
    checked,
    lines_of,
    reader_of,
    refusal_of,
)


@require_GET
def index(request: Request) -> HttpResponse:
    """Show the playground; ?base= and up to four ?column= (`base` or an adapter's number) choose.

    ?blind=1 hides which model wrote which answer.
    """
    shown = playground(
        request.project,
        request.user,
        request.GET.get("base", ""),
        request.GET.getlist("column"),
        blind=bool(request.GET.get("blind")),
    )
    form = PromptForm(None, request.project, request.user)
    form.initial = {"base": shown.base}
    links = TryOutLink.objects.working().with_votes().managed_by(request.user).filter(project=request.project)
    context = {
        "playground": shown,
        "form": form,
        "link_form": TryOutLinkForm(None, request.project, request.user),
        "try_out_links": links,
        "save_form": SavedPromptForm(),
    }
    return render(request, "adapters/playground.html", context)


@require_POST
async def start(request: Request) -> HttpResponse:
    """Start the model before the first prompt, so that its answer comes sooner."""
    form = await checked(PromptForm, request)
    base: BaseModel | None = form.cleaned_data.get("base")
    if base is None:
        return JsonResponse({"error": "unknown"}, status=422)
    try:
        state = await request_engine(base, request.user)
    except ChatFailed as refusal:
        return JsonResponse({"error": refusal.code, "text": refusal.message}, status=422)
    return JsonResponse({"state": state.value})


@require_POST
async def answer(request: Request) -> HttpResponseBase:
    """Stream the answers of all columns to one prompt, or blind those of two of them."""
    form = await checked(PromptForm, request)
    if not form.is_valid():
        return refusal_of(form)
    reader = await reader_of(request, request.project)
    stream = blind_answers if form.cleaned_data["blind"] else answers
    events = stream(
        *(request.project, request.user, form.models, form.messages(), form.settings()),
        after_trainings=form.cleaned_data["wait"],
    )
    return await lines_of(events, reader.is_admitted)


@require_POST
def vote(request: Request) -> HttpResponse:
    """Store a vote on two blind answers, and return the names of their models."""
    own = BlindComparison.objects.visible_to(request.user).filter(voter=request.user)
    comparison = own.select_related("adapter_a", "adapter_b").with_token(request.POST.get("comparison", ""))
    if comparison is None:
        raise Http404
    form = PreferenceForm(request.POST)
    if not form.is_valid():
        return JsonResponse({"error": "refused"}, status=422)
    if not comparison.cast(form.cleaned_data["vote"]):
        return JsonResponse({"error": "has_vote"}, status=409)
    return JsonResponse({"columns": revealed(comparison)})
