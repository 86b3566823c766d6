"""The progress of a run as text: its stages, its phase, the time left, and what stopping it keeps.

Pure functions of rows. Knows nothing of HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from dashboard.models import Job, State, TrainingRun
from dashboard.models.jobs.job_state import WAITING
from dashboard.models.jobs.stop import has_progress

# Labels of the engine's phases.
PHASES = {
    "loading": gettext_lazy("loading the base model"),
    "tokenizing": gettext_lazy("tokenizing the rows"),
    "training": gettext_lazy("training"),
    "saving": gettext_lazy("saving the adapter"),
    "merging": gettext_lazy("merging the adapter"),
    "writing": gettext_lazy("writing the file"),
    "uploading": gettext_lazy("uploading to the hub"),
    "checking": gettext_lazy("computing the checksum"),
    "scoring": gettext_lazy("scoring answers"),
    "timing": gettext_lazy("measuring the time per token"),
}
# Phases whose percentage is that of the whole work.
COUNTED = ("training", "scoring")
# States in which the stages end before the last one.
ENDED = (State.FAILED, State.CANCELLED)
STAGES = ("waiting", "starting", "training", "saving", "evaluating", "finished")
# The stage of a run by its state. In other states the last stage that was reached counts.
STAGE_OF = {
    "draft": "waiting",
    State.QUEUED: "waiting",
    State.STARTING: "starting",
    State.RUNNING: "training",
    State.FINALIZING: "saving",
}
# Labels of states without a stage of their own; they replace the label of the current stage.
STATE_LABELS = {
    "draft": gettext_lazy("Draft"),
    State.CANCELLING: gettext_lazy("Stopping"),
    State.INTERRUPTED: gettext_lazy("Interrupted"),
    TrainingRun.Outcome.STOPPED_EARLY: gettext_lazy("Stopped early"),
}
# Labels of an evaluation that is not running.
EVALUATION_LABELS = {
    State.QUEUED: gettext_lazy("Evaluation: waiting"),
    State.STARTING: gettext_lazy("Evaluation: starting"),
    State.FINALIZING: gettext_lazy("Evaluation: saving"),
    State.CANCELLING: gettext_lazy("Evaluation: stopping"),
    State.INTERRUPTED: gettext_lazy("Evaluation: interrupted"),
}


def stages(run: TrainingRun, evaluation: Job | None) -> list[dict[str, Any]]:
    """Return the stages of a run, each done, current or to come; a stop or failure ends the list."""
    labels = [_("Waiting"), _("Starting"), _("Training"), _("Saving"), _("Evaluating"), _("Finished")]
    reached = STAGES.index(stage_of(run, evaluation))
    ended = next(
        (state for state in (run.state, evaluation.state if evaluation else "") if state in ENDED), ""
    )
    finished = STAGES[reached] == "finished"
    if STAGES[reached] == "evaluating" and evaluation:
        labels[reached] = str(EVALUATION_LABELS.get(State(evaluation.state), labels[reached]))
    else:
        labels[reached] = str(STATE_LABELS.get(run.state, labels[reached]))
    return [
        {
            "label": label,
            "is_done": place < reached or finished,
            "is_current": place == reached and not finished and not ended,
            "is_broken": ended == State.FAILED and place == reached,
            "is_stopped": ended == State.CANCELLED and place == reached,
        }
        for place, label in enumerate(labels)
    ]


def stage_of(run: TrainingRun, evaluation: Job | None) -> str:
    """Return the stage that the run is in by its state, or in which it ended."""
    if run.is_over and run.state not in ENDED:
        return "evaluating" if evaluation and evaluation.state != State.SUCCEEDED else "finished"
    got_to = "training" if run.trained_step else "starting" if run.job and run.job.attempt else "waiting"
    return STAGE_OF.get(run.state, got_to)


def announcement(steps: list[dict[str, Any]], working: Job | None) -> str:
    """Return the current stage and its percentage for screen readers; "" if nothing runs."""
    label = next((step["label"] for step in steps if step["is_current"]), "")
    if not label or working is None or working.state != State.RUNNING or not working.total_steps:
        return str(label)
    facts = {"label": label, "phase": PHASES.get(working.phase, ""), "percent": working.percent}
    if working.phase in COUNTED or not facts["phase"]:
        return _("%(label)s, %(percent)d percent") % facts
    # The percentage is the phase's: 40 percent of loading is not 40 percent of training.
    return _("%(label)s, %(phase)s, %(percent)d percent") % facts


def time_left(row: TrainingRun | Job | None) -> float | None:
    """Return the seconds until the last step of a run or job; None if unknown or if it is being stopped."""
    if isinstance(row, TrainingRun):
        return None if row.is_over else time_left(row.job)
    if row is None or row.state != State.RUNNING or row.is_stop_requested:
        return None
    return row.eta_seconds


def eta_range(row: TrainingRun | Job | None) -> tuple[float, float] | None:
    """Return the lower and upper bound of the seconds left, rounded to what the estimate can show."""
    left = time_left(row)
    if left is None:
        return None
    unit = 60 if left >= 120 else 10 if left >= 20 else 1
    low, high = left * 0.9, left * 1.25 + 2
    return unit * math.floor(low / unit), unit * math.ceil(high / unit)


def stopping_text(run: TrainingRun) -> str:
    """Return what happens to a run that is being stopped; "" for other runs."""
    if run.is_over or run.job is None:
        return ""
    if run.state == State.CANCELLING and run.job.keep == Job.Keep.CHECKPOINT:
        if has_progress(run.job):
            return _("The run finishes its step, saves a checkpoint and stops. You can then resume it.")
        return _("The run stops as soon as possible. Its checkpoint is kept, so that you can resume it.")
    if run.state == State.CANCELLING:
        return _("The run finishes its step and stops. Its progress is discarded.")
    if run.job.keep != Job.Keep.ADAPTER:
        return ""
    if run.state in (State.QUEUED, State.INTERRUPTED):
        return _("When a worker claims the run, it saves its best weights so far as an adapter and ends.")
    if not has_progress(run.job):
        return _("The run stops as soon as possible. Its best weights so far are kept as an adapter.")
    return _("The run is stopping: its best weights so far are saved as an adapter.")


def outcome_summary(job: Job, runs: Sequence[TrainingRun]) -> str:
    """Return how the runs of a job with several runs ended: "3 of 4 finished, 1 diverged"; else ""."""
    if len(runs) < 2 or not job.is_over:
        return ""
    failed = [run for run in runs if run.state == State.FAILED]
    diverged = sum(run.error_code == "diverged" for run in failed)
    stopped = sum(run.state == State.CANCELLED for run in runs)
    # Runs that were stopped early have an adapter, so they count as finished.
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
    """Return whether stopping the job discards no work."""
    has_trained = job.kind == Job.Kind.TRAIN and job.attempt
    return job.state in WAITING and not has_trained


def stop_loss_text(job: Job, runs: int) -> str:
    """Return a sentence that says what stopping a job with this number of runs discards."""
    if is_stop_lossless(job):
        text = ngettext(
            "The job leaves the queue and does not start.",
            "The job leaves the queue. Its %(count)d runs do not start.",
            max(1, runs),
        )
        return text % {"count": runs}
    if job.kind == Job.Kind.SERVE:
        return _("Answers that are being written end. The next prompt starts the model again.")
    if job.kind != Job.Kind.TRAIN:
        return _("The work of this job so far is discarded.")
    text = ngettext(
        "The progress of the run is discarded. To keep it, stop the run on its own page.",
        "The progress of its %(count)d runs is discarded. To keep it, stop one of the runs on its own page.",
        max(1, runs),
    )
    return text % {"count": runs}
