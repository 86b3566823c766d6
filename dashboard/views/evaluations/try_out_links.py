"""Try-out links: managers create and revoke them; visitors without an account compare two models and vote."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from urllib.parse import urlencode

from asgiref.sync import sync_to_async
from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_POST

from dashboard.chat_relay import ChatModel
from dashboard.forms.adapters import LEAST_BLIND, MOST_COLUMNS, PreferenceForm
from dashboard.forms.try_outs import TryOutLinkForm, VisitorPromptForm, visitor_settings
from dashboard.gate import Request
from dashboard.models import BlindComparison, Role, TryOutLink
from dashboard.presenters.playground import revealed
from dashboard.views.adapters.answer_streams import Event, blind_answers, lines_of, refusal_of
from dashboard.views.public_links import client_address, is_over_limit, link_address, missed, unlisted

# Prompts per minute: of one address, and of all visitors of a link.
ADDRESS_PROMPTS, LINK_PROMPTS = 6, 20
WINDOW = 60
# Prompts that are being answered at a time by one web process.
ADDRESS_OPEN, LINK_OPEN = 3, 10
open_answers: Counter[str] = Counter()


@never_cache
@require_POST
def create(request: Request) -> HttpResponse:
    """Create a link to the playground's models with its settings, and show it once."""
    request.project.require(request.user, Role.MANAGER)
    form = TryOutLinkForm(request.POST, request.project, request.user)
    if not form.is_valid():
        for errors in form.errors.values():
            messages.error(request, " ".join(map(str, errors)))
        # The values come unchecked, and an address has limits.
        chosen = [("base", request.POST.get("base", "")[:20])]
        chosen += [("column", name[:20]) for name in request.POST.getlist("column")[:MOST_COLUMNS]]
        return redirect(f"{reverse('playground')}?{urlencode(chosen)}")
    adapters = [model.adapter for model in form.models]
    base = form.cleaned_data["base"]
    link, secret = TryOutLink.issue(request.project, request.user, base, adapters, **form.link_values())
    context = {"link": link, "address": link_address(request, "try-out-open", secret)}
    return render(request, "evaluations/try_out_links/created.html", context, status=201)


@require_POST
def revoke(request: Request, pk: int) -> HttpResponse:
    """Revoke a link; it stops working at once, and its votes stay."""
    TryOutLink.objects.fetch(request.user, pk, Role.MANAGER).revoke()
    messages.success(request, _("The link no longer works."))
    return redirect("team-index")


@login_not_required
@never_cache
@require_GET
def open(request: HttpRequest, secret: str) -> HttpResponse:
    """Show the page behind a link; wrong, expired and revoked links look the same."""
    if TryOutLink.objects.with_secret(secret) is None:
        return missed(request)
    context = {"secret": secret, "form": VisitorPromptForm()}
    return unlisted(render(request, "evaluations/try_out_links/open.html", context))


@login_not_required
@never_cache
@require_POST
async def answer(request: HttpRequest, secret: str) -> HttpResponseBase:
    """Stream two blind answers to a visitor's prompt."""
    link = await sync_to_async(TryOutLink.objects.with_secret)(secret)
    if link is None:
        return await sync_to_async(missed)(request)
    form = VisitorPromptForm(request.POST)
    if not form.is_valid():
        return refusal_of(form)
    models = await sync_to_async(models_of)(link)
    if len(models) < LEAST_BLIND:
        gone = _("A model of this link was deleted. Ask the sender for a new link.")
        return JsonResponse({"error": "model_deleted", "text": gone}, status=410)
    limits = {f"address-{client_address(request)}": ADDRESS_OPEN, f"link-{link.pk}": LINK_OPEN}
    if any(open_answers[key] >= most for key, most in limits.items()):
        refusal = _("Other prompts are still being answered. Send this one again when they are.")
    else:
        refusal = await sync_to_async(admit)(request, link)
    if refusal:
        return JsonResponse({"error": "too_many", "text": refusal}, status=429)
    events = blind_answers(link.project, link, models, form.messages(link), visitor_settings(link))
    return await lines_of(
        counted(events, list(limits)), lambda: TryOutLink.objects.working().filter(pk=link.pk).exists()
    )


async def counted(events: AsyncGenerator[Event, None], keys: Sequence[str]) -> AsyncGenerator[Event, None]:
    """Yield the events, and count the keys in `open_answers` until they end."""
    open_answers.update(keys)
    try:
        async with aclosing(events) as open_events:
            async for event in open_events:
                yield event
    finally:
        for key in keys:
            open_answers[key] -= 1
            if not open_answers[key]:
                del open_answers[key]


def admit(request: HttpRequest, link: TryOutLink) -> str:
    """Count one more prompt. Return the reason if it comes too soon or is one too many, else ""."""
    minute = int(time.time()) // WINDOW
    limits = (
        (f"try-out:{minute}:{client_address(request)}", ADDRESS_PROMPTS),
        (f"try-out:{minute}:link-{link.pk}", LINK_PROMPTS),
    )
    if any(is_over_limit(key, most, 2 * WINDOW) for key, most in limits):
        return _("That was too fast. Wait a minute, then send the prompt again.")
    if not link.take_prompt():
        return _("This link has answered all the prompts that it may. Ask the sender for a new one.")
    return ""


def models_of(link: TryOutLink) -> list[ChatModel]:
    """Return the models that visitors compare."""
    base = [ChatModel(link.base_model)] if link.with_base else []
    return [*base, *(ChatModel(link.base_model, adapter) for adapter in link.adapters.all())]


@login_not_required
@never_cache
@require_POST
def vote(request: HttpRequest, secret: str) -> HttpResponse:
    """Store a visitor's vote on two blind answers of this link."""
    link = TryOutLink.objects.with_secret(secret)
    if link is None:
        return missed(request)
    own = BlindComparison.objects.filter(link=link).select_related("adapter_a", "adapter_b")
    comparison, form = own.with_token(request.POST.get("comparison", "")), PreferenceForm(request.POST)
    if comparison is None or not form.is_valid():
        return JsonResponse({"error": "refused"}, status=422)
    if not comparison.cast(form.cleaned_data["vote"]):
        return JsonResponse({"error": "has_vote"}, status=409)
    names = revealed(comparison) if link.with_names else []
    # Only members of the project can open their pages.
    return JsonResponse({"columns": [{"label": name["label"]} for name in names]})
