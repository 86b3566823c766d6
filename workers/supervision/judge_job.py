"""Run a judge job: ask the judge about every answer without a verdict, and store the verdicts.

The worker's own process makes the calls, so that neither the web nor the engine holds the key. Verdicts are
stored as they come, under the fence: a job that is cut off continues with what is pending.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from django.db import transaction

from dashboard.models import IllegalMove, Job, JudgeEvaluation, State
from dashboard.models.evaluations.judge_evaluation import configured_judge
from workers.contract.errors import RunError
from workers.judge import PROMPT_SHA256, Endpoint, Reply, ask, connect
from workers.supervision.recorders import finish_job
from workers.supervision.supervisor import WORKER_SHUTS_DOWN, Fenced

PARALLEL_CALLS = 4
TICK_SECONDS = 1.0
# After so many missing replies in a row the judge counts as unreachable.
MOST_MISSING = 8


def judge_answers(job: Job, is_draining: Callable[[], bool]) -> None:
    """Run one attempt and write its end. Raises RunError if the judge cannot judge."""
    judge_evaluation = JudgeEvaluation.objects.select_related("study", "run").get(job=job)
    judge = agreed_judge(judge_evaluation)
    try:
        job.move("progress", actor=job.worker, fenced=True)
        stop = _ask_all(job, judge_evaluation, judge, is_draining)
        if stop == "cancel":
            job.move("stopped", actor=job.worker, fenced=True)
        elif stop:
            job.interrupt(WORKER_SHUTS_DOWN, actor=job.worker, counts_as_failure=False)
        else:
            with transaction.atomic():
                finish_job(job)
    except Fenced:
        return
    except IllegalMove:
        job.refresh_from_db(fields=["state"])
        if job.state == State.CANCELLING:
            job.move("stopped", actor=job.worker, fenced=True)


def agreed_judge(judge_evaluation: JudgeEvaluation) -> Endpoint:
    """Return the judge that the user consented to. Raises RunError if another one is configured by now."""
    judge = configured_judge()
    if judge is None:
        raise RunError("No judge is configured any more: `JUDGE_URL` is not set.", code="judge_off")
    agreed = (judge_evaluation.host, judge_evaluation.model, judge_evaluation.prompt_sha256)
    if agreed != (judge.host, judge.model, PROMPT_SHA256):
        raise RunError(
            f"The judge has changed since these answers were released to {judge_evaluation.model} at "
            f"{judge_evaluation.host}. Start the judge evaluation again.",
            code="judge_changed",
        )
    return judge


def _ask_all(
    job: Job, judge_evaluation: JudgeEvaluation, judge: Endpoint, is_draining: Callable[[], bool]
) -> str:
    """Ask until every answer was asked about or a stop is wanted; return the reason to stop, or ""."""
    questions, earlier = judge_evaluation.pending_questions(), judge_evaluation.judged
    judged = earlier
    replies: Counter[Reply] = Counter()
    missing_in_a_row, began, stop = 0, time.monotonic(), ""
    error: BaseException | None = None
    pool, client = ThreadPoolExecutor(PARALLEL_CALLS, thread_name_prefix="judge"), connect(judge)
    try:
        pending = {pool.submit(ask, client, judge.model, question): items for question, items in questions}
        while pending and not (stop or error):
            time.sleep(TICK_SECONDS)
            verdicts = []
            for future in [future for future in pending if future.done()]:
                items = pending.pop(future)
                if failure := future.exception():
                    error = failure
                    continue
                reply = future.result()
                replies[reply] += 1
                missing_in_a_row = missing_in_a_row + 1 if reply is Reply.MISSING else 0
                if reply in (Reply.RIGHT, Reply.WRONG):
                    verdicts.append((reply is Reply.RIGHT, items))
            judged, done = judged + len(verdicts), replies.total()
            left = (time.monotonic() - began) / done * (len(questions) - done) if done else None
            _store(
                job,
                judge_evaluation,
                verdicts,
                {"answers": earlier + len(questions), "judged": judged},
                {"step": earlier + done, "total_steps": earlier + len(questions), "eta_seconds": left},
            )
            wanted = job.read_stop_request()
            if wanted is None:
                raise Fenced
            stop = wanted or ("drain" if is_draining() else "")
            if missing_in_a_row >= MOST_MISSING:
                error = RunError(
                    f"The judge at {judge.host} did not reply {MOST_MISSING} times in a row. Verdicts so far "
                    "are kept. Start the judge evaluation again when it replies.",
                    code="judge_silent",
                )
    finally:
        # Calls in flight end by themselves, at the latest when their time and retries are spent.
        pool.shutdown(wait=False, cancel_futures=True)
    with transaction.atomic():
        if not job.renew_lease():
            raise Fenced
        judge_evaluation.summarize()
    if error:
        raise error
    if questions and not (stop or judged):
        raise RunError(
            f"None of the judge's {replies.total():,} replies was a verdict. Choose another `JUDGE_MODEL`.",
            code="judge_unreadable" if replies[Reply.UNREADABLE] else "judge_silent",
        )
    return stop


def _store(
    job: Job,
    judge_evaluation: JudgeEvaluation,
    verdicts: list[tuple[bool, list[int]]],
    counts: dict[str, int],
    progress: dict[str, float | None],
) -> None:
    """Store verdicts, counts and progress in one transaction, and renew the lease. Raises Fenced."""
    with transaction.atomic():
        if not job.renew_lease():
            raise Fenced
        judge_evaluation.record(verdicts)
        JudgeEvaluation.objects.filter(pk=judge_evaluation.pk).update(**counts)
        # Verdicts are progress, so the attempt does not count as failed.
        reset = {"failed_attempts": 0} if verdicts else {}
        job.update_progress(phase="judging", **progress, **reset)
