"""Where a run stands, in words: its stages, the phase of its work, the time left, what a stop will leave.

Pure functions of rows; no page shows a state that the row does not have. Knows nothing of HTTP.
"""

from __future__ import annotations

import math
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from dashboard.models import Job, State, TrainingRun
from dashboard.models.job_state import WAITING
from dashboard.models.stopping import has_learned

# What the engine calls its phases, in words.
PHASES = {
    "loading": gettext_lazy("loading the base model"),
    "tokenizing": gettext_lazy("reading the rows"),
    "training": gettext_lazy("learning"),
    "saving": gettext_lazy("saving the adapter"),
    "scoring": gettext_lazy("scoring answers"),
    "timing": gettext_lazy("timing a token"),
}
# A row of stages that ends here ends without its last one.
ENDED = (State.FAILED, State.CANCELLED)
STAGES = ("waiting", "starting", "training", "saving", "evaluating", "finished")


def stages(run: TrainingRun, evaluation: Job | None) -> list[dict[str, Any]]:
    """The steps of a run in words, each done, current or still to come; a stop or failure ends the row."""
    words = (_("Waiting"), _("Starting"), _("Training"), _("Saving"), _("Evaluating"), _("Finished"))
    reached = STAGES.index(stage_of(run, evaluation))
    ended = next(
        (state for state in (run.state, evaluation.state if evaluation else "") if state in ENDED), ""
    )
    finished = STAGES[reached] == "finished"
    return [
        {
            "word": word,
            "is_done": place < reached or finished,
            "is_current": place == reached and not finished and not ended,
            "is_broken": ended == State.FAILED and place == reached,
            "is_stopped": ended == State.CANCELLED and place == reached,
        }
        for place, word in enumerate(words)
    ]


def stage_of(run: TrainingRun, evaluation: Job | None) -> str:
    """The step that the run is in, or in which it ended."""
    if run.state in (State.FAILED, State.CANCELLED):
        return "training" if run.trained_step else "starting" if run.job and run.job.attempt else "waiting"
    if run.is_over:
        return "evaluating" if evaluation and evaluation.state != State.SUCCEEDED else "finished"
    if run.state == State.RUNNING and run.job:
        return (
            "saving"
            if run.job.phase == "saving"
            else "training"
            if run.job.phase == "training"
            else "starting"
        )
    known = {State.STARTING: "starting", State.FINALIZING: "saving", State.CANCELLING: "training"}
    return known.get(State(run.state), "waiting") if run.job else "waiting"


def eta_range(job: Job | None) -> tuple[float, float] | None:
    """Seconds left, from and to: speed changes over a run, so one number would be a promise."""
    if job is None or job.state != State.RUNNING or job.eta_seconds is None or job.stop_is_asked:
        return None
    # An estimate in seconds of minutes would promise what it cannot keep.
    unit = 60 if job.eta_seconds >= 120 else 10 if job.eta_seconds >= 20 else 1
    low, high = job.eta_seconds * 0.9, job.eta_seconds * 1.25 + 2
    return unit * math.floor(low / unit), unit * math.ceil(high / unit)


def stopping_words(run: TrainingRun) -> str:
    """What happens to a run that somebody has asked to stop, until it has ended; "" for others."""
    if run.is_over or run.job is None:
        return ""
    if run.state == State.CANCELLING and run.job.keep == Job.Keep.CHECKPOINT:
        if has_learned(run.job):
            return _("It finishes its step, saves where it stands and stops. You can resume it then.")
        return _("It stops as soon as it can. What it has learned by then is kept, to resume it later.")
    if run.state == State.CANCELLING or run.stop_asked == TrainingRun.Stop.CANCEL:
        return _("It finishes its step and stops. What it has learned is discarded.")
    if run.job.keep != Job.Keep.ADAPTER and run.stop_asked != TrainingRun.Stop.FINISH:
        return ""
    if run.state in (State.QUEUED, State.INTERRUPTED):
        return _("As soon as a worker takes it up, the best so far is saved as an adapter and it ends.")
    return _("Asked to stop: it trains no further, and the best so far is saved as an adapter.")


def loses_nothing(job: Job) -> bool:
    """Whether a stop takes nothing away but a place in the queue."""
    has_trained = job.kind == Job.Kind.TRAIN and job.attempt
    return job.state in WAITING and not has_trained


def stop_loses(job: Job) -> str:
    """What a stop of this whole job takes away."""
    runs = len(job.training_runs.all())
    if loses_nothing(job):
        said = ngettext(
            "It leaves the queue and will not start.",
            "Its %(count)d runs leave the queue and will not start.",
            max(1, runs),
        )
        return said % {"count": runs}
    if job.kind != Job.Kind.TRAIN:
        return _("What this job did so far is dropped.")
    said = ngettext(
        "What it has learned so far is dropped. To keep it, stop it on its own page.",
        "What its %(count)d runs have learned so far is dropped. To stop one of them, or to keep something, "
        "stop it on its own page.",
        max(1, runs),
    )
    return said % {"count": runs}
