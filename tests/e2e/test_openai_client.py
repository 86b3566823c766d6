"""A program with the unmodified `openai` package: rows become a model that answers and an event."""

from __future__ import annotations

import json

import openai
import pytest
from openai import OpenAI
from playwright.sync_api import Page

from tests.e2e.installation import Api, Installation, until
from tests.receivers import receiver

pytestmark = pytest.mark.slow
QUESTION = "Which letter follows a?"


def rows() -> bytes:
    """Return forty chats in OpenAI's format."""
    answers = ({"role": "assistant", "content": chr(98 + number % 20)} for number in range(40))
    questions = (
        {"role": "user", "content": f"Which letter follows {chr(97 + number % 20)}? ({number})"}
        for number in range(40)
    )
    return b"\n".join(
        json.dumps({"messages": list(pair)}).encode() for pair in zip(questions, answers, strict=True)
    )


def test_rows_become_a_model_that_answers(page: Page, installation: Installation, api: Api) -> None:
    port = int(installation.environment["WEBHOOK_HOSTS"].rpartition(":")[2])
    # The model starts with the first chat: until it is ready, the client is told when to ask again.
    client = OpenAI(base_url=f"{installation.url}/v1", api_key=api.token, max_retries=40)
    with receiver(port) as listening:
        page.goto("/settings/webhooks/")
        page.get_by_label("Address").fill(listening.url)
        page.get_by_role("button", name="Create webhook").click()
        secret = page.locator("#webhook-secret").inner_text()

        file = client.files.create(file=("letters.jsonl", rows()), purpose="fine-tune")
        until(lambda: bool(client.models.list().data), "the inspection of the bundled model")
        base = next(model.id for model in client.models.list() if not model.id.startswith("ft:"))
        # Asked at once: the client waits for the import by itself.
        job = client.fine_tuning.jobs.create(
            model=base,
            training_file=file.id,
            suffix="letters",
            hyperparameters={"n_epochs": 1, "batch_size": 16},
            extra_body={"r": 4},
        )
        assert client.files.wait_for_processing(file.id, poll_interval=0.2).status == "processed"
        until(
            lambda: (
                client.fine_tuning.jobs.retrieve(job.id).status
                not in ("queued", "running", "validating_files")
            ),
            "the job",
        )
        job = client.fine_tuning.jobs.retrieve(job.id)
        assert job.status == "succeeded", job.error
        until(lambda: any(job.id.encode() in body for _headers, body in listening.events), "the event")
    headers, body = next(event for event in listening.events if job.id.encode() in event[1])
    event = client.webhooks.unwrap(body, headers, secret=secret)
    assert event.type == "fine_tuning.job.succeeded"

    losses = [
        event.data["train_loss"]
        for event in client.fine_tuning.jobs.list_events(job.id)
        if event.type == "metrics"
    ]  # type: ignore[index]
    assert losses
    metrics, archive = job.result_files
    assert client.files.content(metrics).text.startswith("step,train_loss")
    assert client.files.content(archive).read()[:2] == b"PK"

    assert job.fine_tuned_model
    stream = client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=[{"role": "user", "content": QUESTION}],
        max_completion_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    *chunks, counted = list(stream)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert counted.usage
    assert 1 <= counted.usage.completion_tokens <= 8
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    whole = client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=[{"role": "user", "content": QUESTION}],
        max_completion_tokens=8,
        temperature=0,
    )
    assert whole.choices[0].message.content == text
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=base, messages=[{"role": "user", "content": "a b " * 20_000}])
    assert refused.value.code == "context_length_exceeded"
