"""What an ended run proposes to change, and the form that such a link opens."""

from __future__ import annotations

import html

import pytest
from django.test import Client
from django.urls import reverse

from dashboard.forms.training.retry import overrides, retries
from dashboard.models import BaseModel, Dataset, Project, State, TrainingRun, User
from dashboard.models.jobs.adjustments import use_smaller_batches
from tests.conftest import finish, make_run


def failed(run: TrainingRun, code: str) -> TrainingRun:
    assert run.job is not None
    finish(run.job, State.FAILED, error_code=code, error_message="It went wrong.")
    return TrainingRun.objects.get(pk=run.pk)


def proposals(run: TrainingRun) -> dict[str, list[tuple[str, str]]]:
    """Label -> (before, after) of each change."""
    return {one.label: [(before, after) for _name, before, after in one.changes] for one in retries(run)}


def test_it_proposes_to_need_less_memory(run: TrainingRun) -> None:
    assert proposals(failed(run, "out_of_memory")) == {
        "Reduce the batch size": [("8", "4"), ("1", "2")],
        "Turn on gradient checkpointing": [("no", "yes")],
        "Reduce the maximum sequence length": [("64", "32")],
    }


def test_it_goes_on_from_what_was_tried_already(run: TrainingRun) -> None:
    assert run.job is not None
    run.job.move("claim", attempt=1)
    use_smaller_batches(run.job, "out_of_memory")
    run.job.move("fail", error_code="out_of_memory", error_message="Not enough memory.")
    found = proposals(TrainingRun.objects.get())
    assert found["Reduce the batch size"] == [("8", "2"), ("1", "4")]


def test_it_proposes_a_lower_rate_after_divergence(run: TrainingRun) -> None:
    assert proposals(failed(run, "diverged")) == {"Lower the learning rate": [("0.0002", "0.00007")]}


@pytest.mark.parametrize("code", ["bad_data", "labels_cut_off", "disk_full", "publish_failed"])
def test_it_proposes_nothing_that_would_not_help(run: TrainingRun, code: str) -> None:
    assert not proposals(failed(run, code))


def test_it_proposes_shorter_rows_alone_where_they_are_too_long(run: TrainingRun) -> None:
    assert list(proposals(failed(run, "max_length_too_long"))) == ["Reduce the maximum sequence length"]


def test_a_stopped_run_has_proposals_and_a_working_one_has_none(run: TrainingRun) -> None:
    assert run.job is not None
    assert not proposals(run)
    run.job.request_cancel()
    assert len(proposals(TrainingRun.objects.get())) == 3


@pytest.mark.parametrize(
    ("longest", "words"), [(30, "no answer is cut"), (60, "About 44 % of the answers are cut.")]
)
def test_shorter_rows_say_how_many_answers_they_cut(run: TrainingRun, longest: int, words: str) -> None:
    version = run.dataset_version
    ends = [longest * place / 100 for place in range(101)]
    lengths = {"quantiles": ends, "answer_ends": ends, "learned_mean": longest / 8, "shared_prefix": 0}
    version.report = {**version.report, "token_lengths": lengths}
    version.save()
    shorter = retries(failed(run, "out_of_memory"))[-1]
    assert words in shorter.effect


def test_it_proposes_no_smaller_batch_than_one_row(
    project: Project, dataset: Dataset, base_model: BaseModel
) -> None:
    small = {"per_device_train_batch_size": 1, "max_length": 16, "gradient_checkpointing": True}
    run = make_run(project, dataset, base_model, **small)
    assert not proposals(failed(run, "out_of_memory"))


def test_a_link_changes_only_settings_that_the_form_takes() -> None:
    query = {"max_length": "32", "r": "0", "seed": "x", "name": "Other", "learning_rate": "0.00007"}
    assert overrides(query) == {"max_length": 32, "learning_rate": 0.00007}


def test_the_form_shows_the_change_beside_the_earlier_value(
    client: Client, ed: User, run: TrainingRun
) -> None:
    client.force_login(ed)
    smaller = retries(failed(run, "out_of_memory"))[0]
    page = client.get(smaller.url).content.decode()
    assert f'href="{run.get_absolute_url()}">Triage #{run.pk}</a>' in page
    assert "Batch size per device: <del>8</del> → <strong>4</strong>" in page
    form = client.get(smaller.url).context["form"]
    assert (form["per_device_train_batch_size"].value(), form["gradient_accumulation_steps"].value()) == (
        4,
        2,
    )


def test_a_plain_clone_shows_no_change(client: Client, ed: User, run: TrainingRun) -> None:
    client.force_login(ed)
    page = client.get(f"{reverse('training-run-create')}?clone={run.pk}").content.decode()
    assert "The form has the settings of" in page
    assert "<del>" not in page


def test_it_takes_no_run_of_another_project(client: Client, otto: User, run: TrainingRun) -> None:
    client.force_login(otto)
    assert client.get(f"{reverse('training-run-create')}?clone={run.pk}&max_length=32").status_code == 404


def test_the_page_of_the_run_links_there(client: Client, ed: User, vera: User, run: TrainingRun) -> None:
    run = failed(run, "out_of_memory")
    client.force_login(ed)
    page = client.get(run.get_absolute_url()).content.decode()
    assert html.escape(retries(run)[0].url) in page
    client.force_login(vera)
    assert "Retry with" not in client.get(run.get_absolute_url()).content.decode()
