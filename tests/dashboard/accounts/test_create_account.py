"""`manage.py create_account`: accounts without a browser."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from django.core.management import CommandError, call_command

from dashboard.models import ApiToken, Membership, Project, Role, User
from tests.conftest import PASSWORD, make_user, shared_environment

ARGUMENTS = ("--email", "New@Example.org", "--project", "Fresh", "--role", "manager")


@pytest.fixture(autouse=True)
def password(monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide the password on standard input."""
    monkeypatch.setattr(sys, "stdin", io.StringIO(PASSWORD + "\n"))


def run(*arguments: str) -> str:
    """Return the output of the command."""
    output = io.StringIO()
    call_command("create_account", *arguments, stdout=output)
    return output.getvalue()


def refused(*arguments: str) -> str:
    """Return the message of a refusal."""
    with pytest.raises(CommandError) as refusal:
        run(*arguments)
    return str(refusal.value)


def test_account_and_project_are_created(db: None) -> None:
    assert run(*ARGUMENTS) == "new@example.org is manager of Fresh.\n"
    user = User.objects.get()
    assert user.check_password(PASSWORD)
    assert not user.is_superuser
    assert Membership.objects.get().role == Role.MANAGER


def test_token_is_the_only_output(db: None) -> None:
    secret = run(*ARGUMENTS, "--token").strip()
    token = ApiToken.objects.authenticate(secret)
    assert token is not None
    assert token.scope == ApiToken.Scope.WRITE
    assert token.project.name == "Fresh"


def test_viewer_gets_read_token(db: None) -> None:
    run("--email", "v@example.org", "--project", "Fresh", "--role", "viewer", "--token")
    assert ApiToken.objects.get().scope == ApiToken.Scope.READ


def test_superuser_option(db: None) -> None:
    run(*ARGUMENTS, "--superuser")
    assert User.objects.get().is_superuser
    assert User.objects.get().is_staff


def test_existing_account_keeps_password_and_gets_role(project: Project) -> None:
    user = make_user("new@example.org", project, Role.VIEWER)
    before = user.password
    run("--email", "new@example.org", "--project", project.name, "--role", "editor")
    user.refresh_from_db()
    assert user.password == before
    assert Membership.objects.get().role == Role.EDITOR


def test_last_manager_is_kept(mara: User, project: Project) -> None:
    text = refused("--email", mara.email, "--project", project.name, "--role", "viewer")
    assert "only manager of Support" in text
    assert Membership.objects.get(user=mara).role == Role.MANAGER


def test_weak_password_changes_nothing(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("password1234\n"))
    assert "too common" in refused(*ARGUMENTS)
    assert not User.objects.exists()
    assert not Project.objects.filter(name="Fresh").exists()


def test_missing_password_is_refused(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert "standard input" in refused(*ARGUMENTS)


def test_empty_project_name_is_refused(db: None) -> None:
    assert "1 to 100" in refused("--email", "a@example.org", "--project", " ", "--role", "viewer")
    assert not User.objects.exists()


def test_refusal_is_one_sentence_with_exit_code_1(transactional_db: None) -> None:
    command = [sys.executable, "manage.py", "create_account", "--project", "P", "--role", "viewer"]
    done = subprocess.run(
        [*command, "--email", "x"],
        input="",
        env=shared_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "CommandError: “x” is not an email address.\n"
