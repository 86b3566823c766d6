"""Run a judge job: ask a language model whether each answer is right, and store its verdicts.

One answer per request, so that position cannot sway the judge. The worker's own process makes the calls, so
that neither the web nor the engine holds the key; it goes into one header and nowhere else. Of a reply only
the verdict is kept, because the text of an error may repeat the key. Verdicts are stored as they come, under
the fence: a job that is cut off continues with what is pending.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import transaction

from dashboard.models import IllegalMove, Job, State
from dashboard.models.evaluations.judge_evaluation import pending_questions, write_verdicts
from workers.contract.errors import RunError
from workers.contract.judge import PROMPT, Endpoint
from workers.supervision.recorders import finish_job
from workers.supervision.supervisor import WORKER_SHUTS_DOWN, Fenced

if TYPE_CHECKING:
    from openai import AsyncOpenAI

PARALLEL_CALLS = 4
# Less than a lease, which is renewed between two batches.
BATCH_SECONDS = 75.0
RETRIES = 5
REPLY_TOKENS = 100
MOST_REPLY_BYTES = 64 * 1024
VERDICTS = {'{"verdict":"right"}': True, '{"verdict":"wrong"}': False}


def judge_answers(job: Job, is_draining: Callable[[], bool]) -> None:
    """Run one attempt and write its end. Raises RunError if the judge cannot judge."""
    if job.spec["judge"] != str(settings.JUDGE):
        raise RunError(
            f"The answers were released to {job.spec['judge']}, which is not the configured judge any more. "
            "Start the judge evaluation again.",
            code="judge_changed",
        )
    try:
        job.move("progress", actor=job.worker, fenced=True)
        if _ask_pending(job, is_draining):
            with transaction.atomic():
                finish_job(job)
        else:
            job.interrupt(WORKER_SHUTS_DOWN, actor=job.worker, counts_as_failure=False)
    except (Fenced, IllegalMove):
        job.refresh_from_db(fields=["state"])
        if job.state == State.CANCELLING and job.renew_lease():
            job.complete_stop(actor=job.worker)


def _ask_pending(job: Job, is_draining: Callable[[], bool]) -> bool:
    """Ask about every pending answer; return False if the worker shuts down before that.

    Raises Fenced when the job is stopped or taken over, and RunError if the judge is unusable.
    """
    questions, began = list(pending_questions(job).items()), time.monotonic()
    # The first attempt has counted all answers; those that are not pending any more have a verdict.
    total = max(job.total_steps, len(questions))
    judged = total - len(questions)
    for start in range(0, len(questions), PARALLEL_CALLS):
        if is_draining():
            return False
        texts, items = zip(*questions[start : start + PARALLEL_CALLS], strict=True)
        replies = asyncio.run(ask_all(settings.JUDGE, texts))
        verdicts = {pk: reply for reply, same in zip(replies, items, strict=True) for pk in same}
        judged += sum(reply is not None for reply in replies)
        if not judged:
            raise RunError(
                "The judge's replies are not verdicts. Choose another `JUDGE_MODEL`.", code="judge_unreadable"
            )
        replied = start + len(texts)
        left = (time.monotonic() - began) / replied * (len(questions) - replied)
        with transaction.atomic():
            if not job.renew_lease():
                raise Fenced
            write_verdicts(verdicts)
            # Verdicts are progress, so the attempt does not count as failed.
            counts = {"step": judged, "total_steps": total, "failed_attempts": 0}
            job.update_progress(phase="judging", eta_seconds=left, **counts)
        if job.read_stop_request() != "":
            raise Fenced
    return True


async def ask_all(judge: Endpoint, materials: Sequence[str]) -> list[bool | None]:
    """Return for each answer whether the judge calls it right; None where its reply is not a verdict.

    Raises RunError if one stays without a reply.
    """
    import httpx2
    import openai

    # A redirect would send rows and key to an address that is not configured. Plain http is for this machine,
    # which no proxy needs to reach.
    http = openai.DefaultAsyncHttpxClient(follow_redirects=False, trust_env=judge.url.startswith("https:"))
    # The client insists on a key; servers without keys ignore it.
    client = openai.AsyncOpenAI(
        base_url=judge.url,
        api_key=judge.key or "EMPTY",
        max_retries=RETRIES,
        timeout=BATCH_SECONDS,
        http_client=http,
    )
    try:
        async with client, asyncio.timeout(BATCH_SECONDS):
            return await asyncio.gather(*(_ask(client, judge.model, material) for material in materials))
    except (openai.APIError, httpx2.HTTPError, TimeoutError) as error:
        reason = f"status {error.status_code}" if isinstance(error, openai.APIStatusError) else "no reply"
        # The cause is cut off: its text may repeat the key.
        raise RunError(
            f"The judge at {judge.host} cannot judge ({reason}). Check `JUDGE_URL`, which ends before "
            "`/chat/completions`, `JUDGE_MODEL` and `JUDGE_API_KEY`, then start the judge evaluation again. "
            "Verdicts so far are kept.",
            code="judge_unavailable",
        ) from None


async def _ask(client: AsyncOpenAI, model: str, material: str) -> bool | None:
    body = b""
    async with client.chat.completions.with_streaming_response.create(
        model=model,
        messages=[{"role": "system", "content": PROMPT}, {"role": "user", "content": material}],
        temperature=0,
        max_tokens=REPLY_TOKENS,
    ) as response:
        async for chunk in response.iter_bytes():
            body += chunk
            if len(body) > MOST_REPLY_BYTES:
                return None
    return read_verdict(body)


def read_verdict(body: bytes) -> bool | None:
    """Read a chat completion. Only exactly the reply that was asked for counts, bare or in a code fence."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
        return VERDICTS.get("".join(text.split()).strip("`").removeprefix("json"))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
