"""Prompt sets: prompts saved from the playground, answered by any models of the project, side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from asgiref.sync import sync_to_async
from django.contrib import messages
from django.db import Error
from django.db.models import Count
from django.http import HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_GET, require_POST

from dashboard.chat_relay import ChatModel
from dashboard.forms.adapters import ModelsForm
from dashboard.forms.prompt_sets import SavedPromptForm
from dashboard.gate import Request
from dashboard.models import Project, PromptAnswer, PromptRefused, PromptSet, Role, SavedPrompt, User
from dashboard.models.evaluations.prompt_set import ANSWER_TOKENS
from dashboard.presenters.prompt_sets import answer_table
from dashboard.views.adapters.answer_streams import (
    Event,
    checked,
    column_events,
    in_own_thread,
    lines_of,
    reader_of,
    refusal_of,
    starting_events,
    storable,
)
from workers.contract.chat import ChatSettings

# Answers that are written at the same time; people who chat meanwhile get the other places.
AT_ONCE = 8
SETTINGS = ChatSettings(max_tokens=ANSWER_TOKENS)
Pair = tuple[SavedPrompt, ChatModel]


@require_GET
def index(request: Request) -> HttpResponse:
    """List the project's prompt sets."""
    own = PromptSet.objects.visible_to(request.user).filter(project=request.project)
    rows = own.annotate(size=Count("prompts")).order_by("name")
    return render(request, "evaluations/prompt_sets/index.html", {"prompt_sets": rows})


@require_GET
def detail(request: Request, pk: int) -> HttpResponse:
    """Show the prompts with the answers of chosen models; ?base= and up to four ?column= choose them."""
    prompt_set = PromptSet.objects.fetch(request.user, pk)
    table = answer_table(prompt_set, request.user, request.GET.get("base", ""), request.GET.getlist("column"))
    may_edit = request.user.has_role(Role.EDITOR, prompt_set.project_id)
    context = {"table": table, "may_edit_set": may_edit, "answer_tokens": ANSWER_TOKENS}
    return render(request, "evaluations/prompt_sets/detail.html", context)


@require_POST
def save(request: Request) -> HttpResponse:
    """Add the playground's prompt to a set."""
    request.project.require(request.user, Role.EDITOR)
    form = SavedPromptForm(request.POST)
    if not form.is_valid():
        return refusal_of(form)
    values = form.cleaned_data
    try:
        saved = PromptSet.objects.save_prompt(
            request.project, request.user, values["prompt_set"], values["system"], values["prompt"]
        )
    except PromptRefused as refusal:
        return JsonResponse({"error": "refused", "text": str(refusal)}, status=422)
    text = _("Saved in “%(name)s”.") % {"name": saved.name}
    return JsonResponse({"text": text, "url": saved.get_absolute_url()})


@require_POST
def delete(request: Request, pk: int) -> HttpResponse:
    """Delete a set with its prompts and their answers."""
    prompt_set = PromptSet.objects.fetch(request.user, pk, Role.EDITOR)
    prompt_set.delete()
    messages.success(request, _("Deleted “%(name)s”.") % {"name": prompt_set.name})
    return redirect("prompt-set-index")


@require_POST
def delete_prompt(request: Request, pk: int, prompt: int) -> HttpResponse:
    """Delete one prompt with its answers."""
    prompt_set = PromptSet.objects.fetch(request.user, pk, Role.EDITOR)
    get_object_or_404(prompt_set.prompts, pk=prompt).delete()
    return redirect(prompt_set)


@require_POST
async def answer(request: Request, pk: int) -> HttpResponseBase:
    """Let the chosen models answer the prompts that they have not answered; stream how many are done."""
    prompt_set = await sync_to_async(PromptSet.objects.fetch)(request.user, pk, Role.EDITOR)
    form = await checked(ModelsForm, request, await Project.objects.aget(pk=prompt_set.project_id))
    if not form.is_valid():
        return refusal_of(form)
    pairs = await sync_to_async(missing)(prompt_set, form.models)
    reader = await reader_of(request, form.project)
    return await lines_of(answer_pairs(form.project, request.user, pairs), reader.is_admitted)


def missing(prompt_set: PromptSet, models: Sequence[ChatModel]) -> list[Pair]:
    """Return the prompts and models without an answer."""
    adapters = [model.adapter for model in models]
    stored = PromptAnswer.objects.of_models(prompt_set, models[0].base, adapters)
    prompts = list(prompt_set.prompts.all())
    by_adapter = {model.adapter and model.adapter.pk: model for model in models}
    return [
        (prompt, model)
        for prompt in prompts
        for adapter, model in by_adapter.items()
        if (prompt.pk, adapter) not in stored
    ]


async def answer_pairs(project: Project, user: User, pairs: Sequence[Pair]) -> AsyncGenerator[Event, None]:
    """Yield the states of the model, then the number of answers that are stored, with the last failure."""
    if not pairs:
        return
    async for event in starting_events(pairs[0][1].base, user):
        yield event
        if "error" in event:
            return
    left = iter(pairs)
    ended: asyncio.Queue[str] = asyncio.Queue()

    async def work() -> None:
        for prompt, model in left:
            ended.put_nowait(await answer_one(project, user, prompt, model))

    tasks = [asyncio.create_task(work()) for _number in range(min(AT_ONCE, len(pairs)))]
    stored = 0
    try:
        for _number in pairs:
            failure = await ended.get()
            stored += not failure
            yield {"answered": stored, "of": len(pairs), "failure": failure}
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answer_one(project: Project, user: User, prompt: SavedPrompt, model: ChatModel) -> str:
    """Store the answer of one model to one prompt. Return the failure as a sentence, or ""."""
    text = ""
    async for event in column_events(project, user, model, prompt.messages(), SETTINGS):
        if "error" in event:
            return str(event["text"])
        text += storable(event.get("text", ""))
        if "end" in event:
            return await in_own_thread(store, prompt, model, text, event["end"] == "length")
    return _("The answer could not be read. Try again.")


def store(prompt: SavedPrompt, model: ChatModel, text: str, is_cut: bool) -> str:
    """Store an answer. Return the failure as a sentence, or ""."""
    try:
        PromptAnswer.objects.update_or_create(
            prompt=prompt,
            base_model=model.base,
            adapter=model.adapter,
            defaults={"text": text, "is_cut": is_cut},
        )
    except Error:
        return _("The answer could not be stored. Perhaps its prompt was deleted meanwhile.")
    return ""
