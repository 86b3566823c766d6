"""`manage.py create_account`: an account and its role in a project, without a browser.

    echo "$PASSWORD" | python manage.py create_account --email E --project P --role manager --token

The password is read from standard input. The project is made when there is none of that name. An account
that exists keeps its password and name: it only gets the role (and, with --superuser, the administration).
With --token a new API token, and nothing else, goes to standard output.
"""

from __future__ import annotations

import getpass
import sys
from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandParser
from django.core.validators import validate_email
from django.db import transaction

from dashboard.models import ApiToken, LastManager, Membership, Project, Role, User


class Refusal(Exception):
    """Nothing was changed; the message is one sentence for the person at the terminal."""


class Command(BaseCommand):
    """See the module."""

    help = "Make an account (password from standard input) and give it a role in a project."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--email", required=True, help="the address to sign in with")
        parser.add_argument("--project", required=True, help="name of the project; made when there is none")
        parser.add_argument("--role", required=True, choices=Role.values, help="role in that project")
        parser.add_argument("--name", default="", help="the person's name, for a new account")
        parser.add_argument("--superuser", action="store_true", help="also administers the installation")
        parser.add_argument("--token", action="store_true", help="print a new API token, and nothing else")

    def handle(self, *_arguments: Any, **options: Any) -> None:
        try:
            with transaction.atomic():
                line = create(**{name: options[name] for name in ARGUMENTS})
        except Refusal as refusal:
            sys.exit(str(refusal))
        self.stdout.write(line)


ARGUMENTS = ("email", "project", "role", "name", "superuser", "token")


def create(*, email: str, project: str, role: str, name: str, superuser: bool, token: bool) -> str:
    """Make or change the rows, and return what is printed: the token's secret, or a sentence."""
    user = User.objects.filter(email=email.strip().lower()).first() or new_user(email.strip(), name)
    if superuser:
        user.is_superuser = user.is_staff = True
        user.save(update_fields=["is_superuser", "is_staff"])
    place = named_project(project.strip())
    give_role(place, user, Role(role))
    if not token:
        return f"{user.email} is {role} of {place}."
    # A viewer's token could never write.
    scope = ApiToken.Scope.READ if role == Role.VIEWER else ApiToken.Scope.WRITE
    return ApiToken.issue(place, user, "create_account", scope=scope)[1]


def new_user(email: str, name: str) -> User:
    """An account with the password from standard input."""
    try:
        validate_email(email)
    except ValidationError:
        raise Refusal(f"“{email}” is not an e-mail address.") from None
    password = read_password()
    if not password:
        raise Refusal("A new account needs a password: send it on standard input.")
    try:
        validate_password(password, User(email=email, first_name=name))
    except ValidationError as error:
        raise Refusal(" ".join(error.messages)) from None
    return User.objects.create_user(email, password, first_name=name[:150])


def read_password() -> str:
    """One line of standard input, asked for without echo at a terminal."""
    if sys.stdin.isatty():
        return getpass.getpass("Password: ", stream=sys.stderr)
    return sys.stdin.readline().rstrip("\r\n")


def named_project(name: str) -> Project:
    """The project of this name; made when there is none."""
    if not 1 <= len(name) <= 100:
        raise Refusal("A project's name has 1 to 100 characters.")
    return Project.objects.named(name)


def give_role(project: Project, user: User, role: Role) -> None:
    """Admit the person, or change the role they have; never at the price of the last manager."""
    member = Membership.objects.filter(project=project, user=user).first()
    if member is None:
        project.admit(user, role)
        return
    try:
        member.change_role(role)
    except LastManager:
        raise Refusal(
            f"{user.email} is the only manager of {project}. Make somebody else a manager first."
        ) from None
