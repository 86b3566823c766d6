"""A judge job: asks the judge about every answer that has no verdict yet, and writes its verdicts down.

The calls are made here, in the worker's own process, so that neither the web nor the engine ever holds the
key. Verdicts are written as they come, under the fence: a job that is cut off goes on with what is open.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.db import transaction

from dashboard.models import IllegalMove, Job, JudgeEvaluation, State
from dashboard.models.judging import endpoint
from workers import judge
from workers.errors import RunError
from workers.judge import PROMPT_SHA256, Endpoint, Question, Reply
from workers.recorders import finish_job
from workers.supervisor import PUT_ASIDE, Fenced

# At once; a judge has other callers too.
CALLS = 4
WAIT_SECONDS = 0.2
WRITE_SECONDS = 1.0
# So many answers in a row without any reply, and the judge is taken for dead.
SILENT = 8


@dataclass
class Tally:
    """What came of this attempt's questions so far, and what of it is not written yet."""

    questions: int
    earlier: int = 0  # verdicts of earlier attempts
    verdicts: int = 0  # of this one
    unreadable: int = 0
    unanswered: int = 0
    silent: int = 0  # in a row, the last ones
    fresh: list[tuple[bool, list[int]]] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    def take(self, reply: Reply, items: list[int]) -> None:
        """Count one reply."""
        self.silent = 0 if reply.came or reply.is_right is not None else self.silent + 1
        if reply.is_right is not None:
            self.verdicts += 1
            self.fresh.append((reply.is_right, items))
        elif reply.came:
            self.unreadable += 1
        else:
            self.unanswered += 1

    @property
    def total(self) -> int:
        """Different answers, with those that earlier attempts have judged."""
        return self.earlier + self.questions

    @property
    def judged(self) -> int:
        """Answers with a verdict, over all attempts."""
        return self.earlier + self.verdicts

    @property
    def done(self) -> int:
        """Answers that need no more asking, over all attempts."""
        return self.judged + self.unreadable + self.unanswered

    @property
    def seconds_left(self) -> float | None:
        """At this attempt's pace; None before its first reply."""
        asked = self.done - self.earlier
        seconds = time.monotonic() - self.began
        return round(seconds / asked * (self.questions - asked), 1) if asked else None


def judge_answers(job: Job, draining: Callable[[], bool]) -> None:
    """One attempt, with its ending. A RunError says why the judge cannot judge."""
    judge_evaluation = JudgeEvaluation.objects.select_related("study", "run").get(job=job)
    judge_ = judge_of(judge_evaluation)
    try:
        job.move("progress", actor=job.worker, fenced=True)
        questions = judge_evaluation.open_questions()
        tally = Tally(len(questions), earlier=judge_evaluation.judged)
        try:
            stop = _ask_all(job, judge_evaluation, judge_, questions, tally, draining)
        except RunError:
            _write(job, judge_evaluation, tally)
            _sum_up(job, judge_evaluation)
            raise
        _sum_up(job, judge_evaluation)
        _end(job, tally, stop)
    except Fenced:
        return
    except IllegalMove:
        job.refresh_from_db(fields=["state"])
        if job.state == State.CANCELLING:
            job.move("stopped", actor=job.worker, fenced=True)


def judge_of(judge_evaluation: JudgeEvaluation) -> Endpoint:
    """The judge that was agreed to; refused where another one is set up by now."""
    found = endpoint()
    if found is None:
        raise RunError("No judge is set up any more: `JUDGE_URL` is not set.", code="judge_off")
    agreed = (judge_evaluation.host, judge_evaluation.model, judge_evaluation.prompt_sha256)
    if agreed != (found.host, found.model, PROMPT_SHA256):
        raise RunError(
            f"Another judge is set up by now than the one that was agreed to ({judge_evaluation.model} at "
            f"{judge_evaluation.host}). Start the judge evaluation again.",
            code="judge_changed",
        )
    return found


def _ask_all(
    job: Job,
    judge_evaluation: JudgeEvaluation,
    judge_: Endpoint,
    questions: list[tuple[Question, list[int]]],
    tally: Tally,
    draining: Callable[[], bool],
) -> str:
    """Ask until all is asked or somebody wants a stop; why it stopped, or ""."""
    stop, written = "", 0.0
    left = iter(questions)
    with _askers() as (pool, halt):
        asked: dict[Future[Reply], list[int]] = {}
        while not stop:
            for question, items in _few(left, CALLS - len(asked)):
                asked[pool.submit(judge.ask, judge_, question, wait=halt.wait, should_stop=halt.is_set)] = (
                    items
                )
            if not asked:
                break
            for future in wait(asked, WAIT_SECONDS, FIRST_COMPLETED).done:
                tally.take(future.result(), asked.pop(future))
            if tally.silent >= SILENT:
                raise RunError(
                    f"The judge at {judge_.host} did not answer {SILENT} times in a row. What it has judged "
                    "so far is kept; start the judge evaluation again when it answers.",
                    code="judge_silent",
                )
            if time.monotonic() - written >= WRITE_SECONDS:
                _write(job, judge_evaluation, tally)
                written = time.monotonic()
                stop = _stop_wanted(job, draining)
    _write(job, judge_evaluation, tally)
    return stop


@contextmanager
def _askers() -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Threads that ask, and what makes them stop waiting; calls on their way end by themselves."""
    pool, halt = ThreadPoolExecutor(CALLS, thread_name_prefix="judge"), threading.Event()
    try:
        yield pool, halt
    finally:
        halt.set()
        pool.shutdown(wait=False, cancel_futures=True)


def _few(left: Iterator[tuple[Question, list[int]]], count: int) -> Iterator[tuple[Question, list[int]]]:
    for _place in range(count):
        question = next(left, None)
        if question is None:
            return
        yield question


def _stop_wanted(job: Job, draining: Callable[[], bool]) -> str:
    wanted = job.read_stop_request()
    if wanted is None:
        raise Fenced
    return wanted or ("drain" if draining() else "")


def _write(job: Job, judge_evaluation: JudgeEvaluation, tally: Tally) -> None:
    """Verdicts, counts and progress in one transaction; renews the lease."""
    with transaction.atomic():
        if not job.renew_lease():
            raise Fenced
        judge_evaluation.note(tally.fresh)
        JudgeEvaluation.objects.filter(pk=judge_evaluation.pk).update(
            asked=tally.total,
            judged=tally.judged,
            unreadable=tally.unreadable,
            unanswered=tally.unanswered,
        )
        shown = {"phase": "judging", "step": tally.done, "total_steps": tally.total}
        # Verdicts are progress: an attempt that has brought some was not in vain.
        reset = {"failed_attempts": 0} if tally.verdicts else {}
        job.update_progress(eta_seconds=tally.seconds_left, **shown, **reset)
    tally.fresh = []


def _sum_up(job: Job, judge_evaluation: JudgeEvaluation) -> None:
    """Whatever has a verdict counts, however the job ends; so this is kept before its ending is written."""
    with transaction.atomic():
        if not job.renew_lease():
            raise Fenced
        judge_evaluation.sum_up()


def _end(job: Job, tally: Tally, stop: str) -> None:
    """Write the ending. Without any verdict it is a failure."""
    if stop == "cancel":
        job.move("stopped", actor=job.worker, fenced=True)
    elif stop:
        job.interrupt(PUT_ASIDE, actor=job.worker, counts_as_failure=False)
    elif tally.total and not tally.judged:
        message = (
            f"None of the judge's {tally.unreadable:,} replies was the verdict that was asked for, so "
            "nothing could be judged. Choose another `JUDGE_MODEL`."
            if tally.unreadable
            else "The judge answered no question in time, so nothing could be judged."
        )
        raise RunError(message, code="judge_unreadable" if tally.unreadable else "judge_silent")
    else:
        with transaction.atomic():
            finish_job(job)
