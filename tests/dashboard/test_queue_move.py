"""Moving a waiting job to another place: managers within their project, everybody else among their own."""

from __future__ import annotations

import pytest
from django.http import HttpResponse
from django.test import Client
from django.urls import reverse

from dashboard.models import Job, Project, User


def submit(project: Project, by: User | None) -> Job:
    return Job.objects.submit(Job.Kind.IMPORT, {}, project=project, by=by)


def line() -> list[int]:
    return list(Job.objects.claim_order("cpu"))


def move(client: Client, job: Job, **wanted: object) -> HttpResponse:
    answer = client.post(reverse("queue-move", args=[job.pk]), wanted)
    assert isinstance(answer, HttpResponse)
    return answer


@pytest.fixture
def eds(project: Project, ed: User) -> list[Job]:
    """Three jobs of Ed's."""
    return [submit(project, ed) for _number in range(3)]


def test_a_manager_moves_a_job_up_and_down(client: Client, mara: User, eds: list[Job]) -> None:
    client.force_login(mara)
    first, second, third = (job.pk for job in eds)
    assert move(client, eds[2], step="up").status_code == 302
    assert line() == [first, third, second]
    move(client, eds[0], step="down")
    assert line() == [third, first, second]


def test_a_manager_moves_it_across_people(
    client: Client, mara: User, project: Project, eds: list[Job]
) -> None:
    hers = submit(project, mara)
    client.force_login(mara)
    assert line() == [eds[0].pk, hers.pk, eds[1].pk, eds[2].pk]
    move(client, eds[2], before=hers.pk)
    assert line() == [eds[0].pk, eds[2].pk, hers.pk, eds[1].pk]


def test_who_comes_later_waits_only_for_what_was_moved(
    client: Client, mara: User, vera: User, project: Project, eds: list[Job]
) -> None:
    client.force_login(mara)
    move(client, eds[1], step="up")
    late = submit(project, vera)
    assert line() == [eds[1].pk, eds[0].pk, late.pk, eds[2].pk]


def test_an_editor_orders_their_own_jobs(client: Client, ed: User, mara: User, project: Project) -> None:
    mine, hers, other = submit(project, ed), submit(project, mara), submit(project, ed)
    client.force_login(ed)
    move(client, other, step="up")
    assert line() == [other.pk, hers.pk, mine.pk]
    move(client, other, after=mine.pk)
    assert line() == [mine.pk, hers.pk, other.pk]


def test_an_editor_exchanges_own_jobs_among_the_places_a_manager_gave(
    client: Client, ed: User, mara: User, project: Project, eds: list[Job]
) -> None:
    hers = submit(project, mara)
    client.force_login(mara)
    move(client, hers, before=eds[0].pk)
    move(client, eds[2], before=hers.pk)
    assert line() == [eds[2].pk, hers.pk, eds[0].pk, eds[1].pk]
    client.force_login(ed)
    move(client, eds[1], before=eds[2].pk)
    assert line() == [eds[1].pk, hers.pk, eds[2].pk, eds[0].pk]


def test_an_editor_moves_nobody_elses(client: Client, ed: User, mara: User, project: Project) -> None:
    submit(project, ed)
    hers = submit(project, mara)
    client.force_login(ed)
    assert move(client, hers, step="up").status_code == 403
    assert line()[1] == hers.pk


def test_it_refuses_a_viewer(client: Client, vera: User, eds: list[Job]) -> None:
    client.force_login(vera)
    assert move(client, eds[1], step="up").status_code == 403


def test_it_hides_the_job_from_an_outsider(client: Client, otto: User, eds: list[Job]) -> None:
    client.force_login(otto)
    assert move(client, eds[1], step="up").status_code == 404


def test_another_projects_job_is_no_place_to_move_to(
    client: Client, mara: User, eds: list[Job], other_project: Project
) -> None:
    foreign = submit(other_project, None)
    client.force_login(mara)
    before = line()
    move(client, eds[2], before=foreign.pk)
    assert line() == before


@pytest.mark.parametrize("wanted", [{}, {"step": "sideways"}, {"before": "x"}, {"after": "9" * 30}])
def test_bad_input_changes_nothing_and_is_said(
    client: Client, mara: User, eds: list[Job], wanted: dict[str, str]
) -> None:
    client.force_login(mara)
    before = line()
    page = client.post(reverse("queue-move", args=[eds[1].pk]), wanted, follow=True).content.decode()
    assert "It can only change places" in page
    assert line() == before


def test_a_job_that_has_started_stays_where_it_is(client: Client, mara: User, eds: list[Job]) -> None:
    eds[0].move("claim", attempt=1)
    client.force_login(mara)
    page = client.post(reverse("queue-move", args=[eds[0].pk]), {"after": eds[1].pk}, follow=True)
    assert "does not wait any more" in page.content.decode()


def test_at_the_end_of_the_line_nothing_happens(client: Client, mara: User, eds: list[Job]) -> None:
    client.force_login(mara)
    before = line()
    move(client, eds[0], step="up")
    move(client, eds[2], step="down")
    assert line() == before


def test_the_history_names_who_moved_it(client: Client, mara: User, eds: list[Job]) -> None:
    client.force_login(mara)
    move(client, eds[2], before=eds[0].pk)
    event = eds[2].events.get(event="move")
    assert event.description == "mara@example.org moved it in the queue: from place 3 to place 1"


def test_the_script_gets_the_board_back(client: Client, mara: User, eds: list[Job]) -> None:
    client.force_login(mara)
    answer = client.post(
        reverse("queue-move", args=[eds[1].pk]), {"step": "up"}, headers={"HX-Request": "true"}
    )
    assert (answer.status_code, f'id="up-{eds[1].pk}"' in answer.content.decode()) == (200, True)
