"""Several ticked runs: compare, download, tag and delete; tags and the note of one run."""

from __future__ import annotations

import io
import shutil
import zipfile
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.models import (
    Adapter,
    BaseModel,
    BlindComparison,
    Dataset,
    Evaluation,
    Job,
    Project,
    RunScore,
    Tag,
    TrainingRun,
    User,
)
from dashboard.models.evaluations.evaluation import base_evaluation
from tests.conftest import make_run
from tests.dashboard.adapters.test_downloads import body
from tests.dashboard.conftest import evaluate, publish
from tests.dashboard.routes import publish_adapter
from tests.dashboard.studies.factories import make_study

URL = reverse("training-run-selection")


def send(client: Client, user: User, do: str, *runs: TrainingRun, **values: str) -> Any:
    client.force_login(user)
    data = {
        "do": do,
        "runs": [run.pk for run in runs],
        "page": "training-run-index",
        "query": "sort=name",
        **values,
    }
    return client.post(URL, data)


def told(client: Client, answer: Any) -> str:
    """Return the messages after the redirect."""
    return " ".join(str(message) for message in client.get(answer["Location"]).context["messages"])


@pytest.fixture
def done(run: TrainingRun) -> TrainingRun:
    """A finished run with scores."""
    evaluate(publish(run), 0.1, 0.6)
    return TrainingRun.objects.get(pk=run.pk)


def test_compare_opens_the_ticked_runs(client: Client, vera: User, run: TrainingRun) -> None:
    assert send(client, vera, "compare", run)["Location"] == f"/compare/?runs={run.pk}"


def test_nothing_ticked_is_said(client: Client, vera: User, run: TrainingRun) -> None:
    answer = send(client, vera, "compare")
    assert answer["Location"] == "/runs/?sort=name"
    assert "Tick at least one row first." in told(client, answer)


@pytest.mark.parametrize("do", ["tag", "untag", "delete"])
def test_viewers_change_nothing(client: Client, vera: User, done: TrainingRun, do: str) -> None:
    assert send(client, vera, do, done, tag="x", confirmed="yes").status_code == 403
    assert TrainingRun.objects.filter(pk=done.pk).exists()
    assert not Tag.objects.exists()


@pytest.mark.parametrize("do", ["compare", "tag", "delete", "download"])
def test_runs_of_another_project_are_not_found(
    client: Client, otto: User, done: TrainingRun, do: str
) -> None:
    assert send(client, otto, do, done, tag="x", confirmed="yes").status_code == 404
    assert TrainingRun.objects.filter(pk=done.pk).exists()


def test_an_unknown_action_and_page_do_nothing(client: Client, ed: User, run: TrainingRun) -> None:
    assert send(client, ed, "publish", run, page="home")["Location"] == "/runs/?sort=name"


def test_tags_are_added_and_removed(client: Client, ed: User, run: TrainingRun) -> None:
    for _time in range(2):
        send(client, ed, "tag", run, tag=" baseline ")
    assert [tag.name for tag in run.tags.all()] == ["baseline"]
    assert "has no tag “other”" in told(client, send(client, ed, "untag", run, tag="other"))
    send(client, ed, "untag", run, tag="baseline")
    assert not Tag.objects.exists()


@pytest.mark.parametrize(
    ("tag", "words"), [("", "Type a tag"), ("x" * 41, "at most 40"), ("a,b", "no comma")]
)
def test_a_wrong_tag_is_refused(client: Client, ed: User, run: TrainingRun, tag: str, words: str) -> None:
    assert words in told(client, send(client, ed, "tag", run, tag=tag))
    assert not Tag.objects.exists()


def test_adapters_are_downloaded_together(
    client: Client,
    vera: User,
    ed: User,
    run: TrainingRun,
    project: Project,
    dataset: Dataset,
    base_model: BaseModel,
) -> None:
    adapter = publish_adapter(run)
    waiting = make_run(project, dataset, base_model, by=ed, name="Waits")
    answer = send(client, vera, "download", run, waiting)
    archive = zipfile.ZipFile(io.BytesIO(body(answer)))
    assert archive.namelist() == [f"{adapter.pk}-Triage-v1.zip"]
    inner = zipfile.ZipFile(io.BytesIO(archive.read(archive.namelist()[0])))
    assert "Triage-v1/adapter_model.safetensors" in inner.namelist()


def test_a_download_that_cannot_be_is_refused(
    client: Client, vera: User, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "None of these runs has an adapter" in told(client, send(client, vera, "download", run))
    shutil.rmtree(publish(run).path())
    assert "no longer on this machine" in told(client, send(client, vera, "download", run))
    monkeypatch.setattr("dashboard.views.training.run_selection.MOST_DOWNLOADED", 0)
    assert "at most 0 adapters" in told(client, send(client, vera, "download", run))


def test_delete_asks_first(client: Client, ed: User, done: TrainingRun) -> None:
    page = send(client, ed, "delete", done).content.decode()
    assert "This cannot be undone." in page
    assert TrainingRun.objects.filter(pk=done.pk).exists()


def test_delete_takes_the_adapter_and_the_scores_and_leaves_the_job(
    client: Client, ed: User, done: TrainingRun
) -> None:
    Tag.objects.set_all(done, ["old"])
    answer = send(client, ed, "delete", done, confirmed="yes")
    assert "Deleted 1 run." in told(client, answer)
    for model in (TrainingRun, Adapter, Evaluation, RunScore, Tag):
        assert not model.objects.exists(), model
    assert Job.objects.filter(pk=done.job_id).exists()
    for route in ("queue-index", "home", "compute-budget-index"):
        assert client.get(reverse(route)).status_code == 200


def test_the_base_model_s_scores_outlive_the_run_that_made_them(
    client: Client, ed: User, done: TrainingRun, project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    second = make_run(project, dataset, base_model, by=ed, name="Second")
    adapter = publish(second)
    evaluate(adapter, 0.1, 0.7)
    base = Evaluation.objects.get(run=done, subject="base")
    adapter.evaluations.update(base_evaluation=base)
    send(client, ed, "delete", done, confirmed="yes")
    assert base_evaluation(TrainingRun.objects.get(pk=second.pk)) == base


def refuse(case: str, run: TrainingRun, done: TrainingRun) -> TrainingRun:
    """Return a run that cannot be deleted, for the reason of this name."""
    if case == "waits":
        return run
    if case == "approved":
        done.adapter.set_stage("approved")
    if case == "reused":
        TrainingRun.objects.filter(pk=run.pk).update(reused_from=done)
    if case == "scoring":
        Evaluation.objects.submit(done.adapter, None)
    if case == "judging":
        job = Job.objects.submit(Job.Kind.JUDGE, {"judge": "x", "rows": 1}, project=done.project, by=None)
        done.evaluations.update(judge_job=job)
    if case == "blind":
        BlindComparison.objects.create(
            project=done.project, base_model=done.base_model, adapter_b=done.adapter, vote="a"
        )
    if case == "study":
        study = make_study(done.project, done.dataset_version.dataset, done.base_model)
        TrainingRun.objects.filter(pk=done.pk).update(study_arm=study.arms.first())
    return done


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("waits", "It has not ended."),
        ("approved", "is approved"),
        ("reused", "in place of training"),
        ("scoring", "being evaluated"),
        ("study", "belongs to the study"),
        ("judging", "A job exports, pushes or judges"),
        ("blind", "their votes need it"),
    ],
)
def test_what_something_needs_is_not_deleted(
    client: Client,
    mara: User,
    done: TrainingRun,
    dataset: Dataset,
    base_model: BaseModel,
    case: str,
    words: str,
) -> None:
    waiting = make_run(done.project, dataset, base_model, by=mara, name="Waits")
    kept = refuse(case, waiting, done)
    assert words in send(client, mara, "delete", kept).content.decode()
    assert "1 run was kept" in told(client, send(client, mara, "delete", kept, confirmed="yes"))
    assert TrainingRun.objects.filter(pk=kept.pk).exists()


# Tags and note of one run


def annotate(client: Client, user: User, run: TrainingRun, **values: str) -> Any:
    client.force_login(user)
    return client.post(reverse("training-run-annotate", args=[run.pk]), values)


def test_tags_and_note_are_saved_and_shown(client: Client, ed: User, vera: User, run: TrainingRun) -> None:
    annotate(client, ed, run, tags="baseline,  for  Ann , baseline", note="Keep it.")
    client.force_login(vera)
    page = client.get(run.get_absolute_url()).content.decode()
    assert "?tag=for%20Ann" in page
    assert "Keep it." in page
    assert "Edit tags and note" not in page
    annotate(client, ed, run, tags="", note="")
    assert not Tag.objects.exists()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"tags": "x" * 41}, "is too long"),
        ({"tags": ",".join(str(number) for number in range(21))}, "at most 20 tags"),
        ({"note": "x" * 2001}, "at most 2000 characters"),
    ],
)
def test_wrong_notes_are_refused(
    client: Client, ed: User, run: TrainingRun, values: dict[str, str], words: str
) -> None:
    assert words in told(client, annotate(client, ed, run, **values))
    assert not Tag.objects.exists()
