"""Run a judge job: ask a language model whether each answer is right, and store its verdicts.

One answer per request, so that position cannot sway the judge. The worker's own process makes the calls, so
that neither the web nor the engine holds the key; it goes into one header and nowhere else. Of a reply only
the verdict is kept, because the text of an error may repeat the key. Verdicts are stored as they come, under
the fence: a job that is cut off continues with what is pending.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from django.conf import settings
from django.db import transaction

from dashboard.models import IllegalMove, Job, JudgeEvaluation, State
from workers.contract.errors import RunError
from workers.contract.judge import PROMPT, PROMPT_SHA256, Endpoint
from workers.supervision.recorders import finish_job
from workers.supervision.supervisor import WORKER_SHUTS_DOWN, Fenced

if TYPE_CHECKING:
    from openai import OpenAI

PARALLEL_CALLS = 4
TICK_SECONDS = 1.0
REQUEST_SECONDS = 60.0
RETRIES = 3
REPLY_TOKENS = 100
MOST_REPLY_BYTES = 64 * 1024
# After so many replies in a row without a verdict the judge counts as unusable.
MOST_FAILURES = 16
# Statuses that say "later"; every status from 500 on does so too.
BUSY = (408, 409, 425, 429)
VERDICTS = {'{"verdict":"right"}': True, '{"verdict":"wrong"}': False}
REFUSALS = {
    401: "Check `JUDGE_API_KEY`.",
    403: "Check `JUDGE_API_KEY`.",
    404: "Check `JUDGE_URL`, which ends before `/chat/completions`, and `JUDGE_MODEL`.",
}
NOT_ACCEPTED = (
    "Check that `JUDGE_URL` does not redirect, and that `JUDGE_MODEL` is a chat model that accepts "
    "`temperature` and `max_tokens`."
)


class NoVerdict(RunError):
    """One request brought no verdict; the next one may."""


def judge_answers(job: Job, is_draining: Callable[[], bool]) -> None:
    """Run one attempt and write its end. Raises RunError if the judge cannot judge."""
    judge_evaluation, judge = JudgeEvaluation.objects.get(job=job), settings.JUDGE
    agreed = (judge_evaluation.host, judge_evaluation.model, judge_evaluation.prompt_sha256)
    if agreed != (judge.host, judge.model, PROMPT_SHA256):
        raise RunError(
            f"The answers were released to {judge_evaluation.model} at {judge_evaluation.host}, which is not "
            "the configured judge any more. Start the judge evaluation again.",
            code="judge_changed",
        )
    try:
        job.move("progress", actor=job.worker, fenced=True)
        if _ask_all(job, judge_evaluation, judge, is_draining):
            with transaction.atomic():
                finish_job(job)
        else:
            job.interrupt(WORKER_SHUTS_DOWN, actor=job.worker, counts_as_failure=False)
    except (Fenced, IllegalMove):
        job.refresh_from_db(fields=["state"])
        if job.state == State.CANCELLING and job.renew_lease():
            job.complete_stop(actor=job.worker)


def _ask_all(
    job: Job, judge_evaluation: JudgeEvaluation, judge: Endpoint, is_draining: Callable[[], bool]
) -> bool:
    """Ask about every pending answer; return False if the worker shuts down before that.

    Raises Fenced when the job is stopped or taken over, and RunError if the judge is unusable.
    """
    questions, client, began = judge_evaluation.pending_questions(), connect(judge), time.monotonic()
    earlier, replies, failures = judge_evaluation.judged, 0, 0
    pool = ThreadPoolExecutor(PARALLEL_CALLS, thread_name_prefix="judge")
    try:
        pending = {pool.submit(ask, client, judge.model, text): items for text, items in questions.items()}
        while pending and not is_draining():
            time.sleep(TICK_SECONDS)
            done = {future: pending.pop(future) for future in list(pending) if future.done()}
            verdicts = [(future.result(), items) for future, items in done.items() if not future.exception()]
            replies += len(done)
            left = (time.monotonic() - began) / replies * len(pending) if replies else None
            with transaction.atomic():
                if not job.renew_lease():
                    raise Fenced
                judge_evaluation.record(verdicts)
                # Verdicts are progress, so the attempt does not count as failed.
                reset = {"failed_attempts": 0} if verdicts else {}
                counts = {"step": earlier + replies, "total_steps": judge_evaluation.answers}
                job.update_progress(phase="judging", eta_seconds=left, **counts, **reset)
            if job.read_stop_request() != "":
                raise Fenced
            for error in [future.exception() for future in done]:
                failures = failures + 1 if error else 0
                is_hopeless = failures == MOST_FAILURES or not (pending or judge_evaluation.judged)
                if error and (is_hopeless or not isinstance(error, NoVerdict)):
                    raise error
    finally:
        # Calls in flight end by themselves, at the latest when their time and retries are spent.
        pool.shutdown(wait=False, cancel_futures=True)
        with transaction.atomic():
            if job.renew_lease():
                judge_evaluation.summarize()
    return not pending


def connect(judge: Endpoint) -> OpenAI:
    """Return a client that retries, follows no redirect, and uses no proxy to reach this machine."""
    import httpx2
    import openai

    # A redirect would send rows and key to an address that is not configured.
    http = httpx2.Client(follow_redirects=False, trust_env=not judge.is_local, timeout=REQUEST_SECONDS)
    # The client insists on a key; servers without keys ignore it.
    key = judge.key or "EMPTY"
    return openai.OpenAI(base_url=judge.url, api_key=key, max_retries=RETRIES, http_client=http)


def ask(client: OpenAI, model: str, material: str) -> bool:
    """Return whether the judge calls an answer right.

    Raises NoVerdict if the next request may succeed, and RunError if every request would be refused.
    """
    import httpx2
    import openai

    host, body = client.base_url.netloc.decode(), b""
    deadline = time.monotonic() + REQUEST_SECONDS * (RETRIES + 1)
    silent = NoVerdict(
        f"The judge at {host} does not reply as it should. Verdicts so far are kept. Start the judge "
        "evaluation again when it does.",
        code="judge_silent",
    )
    try:
        with client.chat.completions.with_streaming_response.create(
            model=model,
            messages=[{"role": "system", "content": PROMPT}, {"role": "user", "content": material}],
            temperature=0,
            max_tokens=REPLY_TOKENS,
        ) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MOST_REPLY_BYTES or time.monotonic() > deadline:
                    raise silent
    except openai.APIStatusError as error:
        status = error.status_code
        # The cause is cut off: its text may repeat the key.
        if status in BUSY or status >= 500:
            raise silent from None
        hint = REFUSALS.get(status, NOT_ACCEPTED)
        message = f"The judge at {host} refused the request (status {status}). {hint}"
        raise RunError(message, code="judge_refused") from None
    except (openai.APIConnectionError, httpx2.HTTPError):
        raise silent from None
    return read_verdict(body)


def read_verdict(body: bytes) -> bool:
    """Read a chat completion. Only exactly the reply that was asked for counts, bare or in a code fence."""
    try:
        text = json.loads(body)["choices"][0]["message"]["content"]
        return VERDICTS["".join(text.split()).strip("`").removeprefix("json")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise NoVerdict(
            "The judge's replies are not verdicts. Choose another `JUDGE_MODEL`.", code="judge_unreadable"
        ) from None
