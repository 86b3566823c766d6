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
from dashboard.models.stopping import has_progress

# What the engine calls its phases, in words.
PHASES = {
    "loading": gettext_lazy("loading the base model"),
    "tokenizing": gettext_lazy("reading the rows"),
    "training": gettext_lazy("learning"),
    "saving": gettext_lazy("saving the adapter"),
    "scoring": gettext_lazy("scoring answers"),
    "timing": gettext_lazy("timing a token"),
}
# Phases whose steps are those of the work itself.
COUNTED = ("training", "scoring")
# A row of stages that ends here ends without its last one.
ENDED = (State.FAILED, State.CANCELLED)
STAGES = ("waiting", "starting", "training", "saving", "evaluating", "finished")
# The step that a run is in by its state. In the other states it is where it had got to.
STAGE_OF = {
    "draft": "waiting",
    State.QUEUED: "waiting",
    State.STARTING: "starting",
    State.RUNNING: "training",
    State.FINALIZING: "saving",
}
# A state that is no step of its own is named in place of the step in which it is.
NAMED = {
    "draft": gettext_lazy("Draft"),
    State.CANCELLING: gettext_lazy("Stopping"),
    State.INTERRUPTED: gettext_lazy("Interrupted"),
    TrainingRun.Outcome.STOPPED_EARLY: gettext_lazy("Stopped early"),
}
# How the evaluation of a run stands while it does not work.
SCORING = {
    State.QUEUED: gettext_lazy("Evaluation: waiting"),
    State.STARTING: gettext_lazy("Evaluation: starting"),
    State.FINALIZING: gettext_lazy("Evaluation: saving"),
    State.CANCELLING: gettext_lazy("Evaluation: stopping"),
    State.INTERRUPTED: gettext_lazy("Evaluation: interrupted"),
}


def stages(run: TrainingRun, evaluation: Job | None) -> list[dict[str, Any]]:
    """The steps of a run in words, each done, current or still to come; a stop or failure ends the row."""
    words = [_("Waiting"), _("Starting"), _("Training"), _("Saving"), _("Evaluating"), _("Finished")]
    reached = STAGES.index(stage_of(run, evaluation))
    ended = next(
        (state for state in (run.state, evaluation.state if evaluation else "") if state in ENDED), ""
    )
    finished = STAGES[reached] == "finished"
    if STAGES[reached] == "evaluating" and evaluation:
        words[reached] = str(SCORING.get(State(evaluation.state), words[reached]))
    else:
        words[reached] = str(NAMED.get(run.state, words[reached]))
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
    """The step that the run is in by its state, whatever its engine does, or in which it ended."""
    if run.is_over and run.state not in ENDED:
        return "evaluating" if evaluation and evaluation.state != State.SUCCEEDED else "finished"
    got_to = "training" if run.trained_step else "starting" if run.job and run.job.attempt else "waiting"
    return STAGE_OF.get(run.state, got_to)


def said(steps: list[dict[str, Any]], working: Job | None) -> str:
    """The present step and how far it is, for those who hear the page; "" once nothing works."""
    word = next((step["word"] for step in steps if step["is_current"]), "")
    if not word or working is None or working.state != State.RUNNING or not working.total_steps:
        return str(word)
    facts = {"word": word, "phase": PHASES.get(working.phase, ""), "percent": working.percent}
    if working.phase in COUNTED or not facts["phase"]:
        return _("%(word)s, %(percent)d percent") % facts
    # The percent is the phase's, and 40 percent of loading would sound like 40 percent of training.
    return _("%(word)s, %(phase)s, %(percent)d percent") % facts


def time_left(row: TrainingRun | Job | None) -> float | None:
    """Seconds until the last step of a run or job; None where nobody knows, or where it will not come.

    What somebody has asked to stop ends now, however many steps it was to have.
    """
    if isinstance(row, TrainingRun):
        return None if row.is_over or row.stop_asked else time_left(row.job)
    if row is None or row.state != State.RUNNING or row.is_stop_requested:
        return None
    return row.eta_seconds


def eta_range(row: TrainingRun | Job | None) -> tuple[float, float] | None:
    """Seconds left, from and to: speed changes over a run, so one number would be a promise."""
    left = time_left(row)
    if left is None:
        return None
    # An estimate in seconds of minutes would promise what it cannot keep.
    unit = 60 if left >= 120 else 10 if left >= 20 else 1
    low, high = left * 0.9, left * 1.25 + 2
    return unit * math.floor(low / unit), unit * math.ceil(high / unit)


def stopping_text(run: TrainingRun) -> str:
    """What happens to a run that somebody has asked to stop, until it has ended; "" for others."""
    if run.is_over or run.job is None:
        return ""
    if run.state == State.CANCELLING and run.job.keep == Job.Keep.CHECKPOINT:
        if has_progress(run.job):
            return _("It finishes its step, saves where it stands and stops. You can resume it then.")
        return _("It stops as soon as it can. What it has learned by then is kept, to resume it later.")
    if run.state == State.CANCELLING or run.stop_asked == TrainingRun.Stop.CANCEL:
        return _("It finishes its step and stops. What it has learned is discarded.")
    if run.job.keep != Job.Keep.ADAPTER and run.stop_asked != TrainingRun.Stop.FINISH:
        return ""
    if run.state in (State.QUEUED, State.INTERRUPTED):
        return _("As soon as a worker takes it up, the best so far is saved as an adapter and it ends.")
    if not has_progress(run.job):
        return _("It stops as soon as it can. What it has learned by then is kept as an adapter.")
    return _("Asked to stop: it trains no further, and the best so far is saved as an adapter.")


def outcome_summary(job: Job) -> str:
    """How the runs of a job that trained several ended: 3 of 4 finished, 1 diverged. "" for any other job."""
    runs = list(job.training_runs.all())
    if len(runs) < 2 or not job.is_over:
        return ""
    failed = [run for run in runs if run.state == State.FAILED]
    diverged = sum(run.error_code == "diverged" for run in failed)
    stopped = sum(run.state == State.CANCELLED for run in runs)
    # One that was stopped early has its adapter like those that went to their end.
    finished = len(runs) - len(failed) - stopped
    others = (
        (diverged, ngettext("%(count)d diverged", "%(count)d diverged", diverged)),
        (len(failed) - diverged, ngettext("%(count)d failed", "%(count)d failed", len(failed) - diverged)),
        (stopped, ngettext("%(count)d stopped", "%(count)d stopped", stopped)),
    )
    first = _("%(count)d of %(all)d finished") if finished else _("none of %(all)d finished")
    parts = [first % {"count": finished, "all": len(runs)}]
    return ", ".join([*parts, *(words % {"count": count} for count, words in others if count)])


def is_stop_lossless(job: Job) -> bool:
    """Whether a stop takes nothing away but a place in the queue."""
    has_trained = job.kind == Job.Kind.TRAIN and job.attempt
    return job.state in WAITING and not has_trained


def stop_loss_text(job: Job) -> str:
    """What a stop of this whole job takes away."""
    runs = len(job.training_runs.all())
    if is_stop_lossless(job):
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
