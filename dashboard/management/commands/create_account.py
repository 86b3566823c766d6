"""`manage.py create_account`: create an account and give it a role in a project, without a browser.

    echo "$PASSWORD" | python manage.py create_account --email E --project P --role manager --token

Reads the password from standard input and creates the project if it does not exist. An existing account
keeps its password and name. With --token, standard output is a new API token and nothing else.
"""

from __future__ import annotations

import getpass
import sys
from typing import Any

from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.core.validators import validate_email
from django.db import transaction

from dashboard.models import ApiToken, LastManager, Membership, Project, Role, User


class Command(BaseCommand):
    help = "Create an account (password from standard input) and give it a role in a project."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--email", required=True, help="the address to sign in with")
        parser.add_argument("--project", required=True, help="name of the project; created if it is missing")
        parser.add_argument("--role", required=True, choices=Role.values, help="role in that project")
        parser.add_argument("--name", default="", help="the user's name, for a new account")
        parser.add_argument("--superuser", action="store_true", help="also administers the installation")
        parser.add_argument("--token", action="store_true", help="print a new API token, and nothing else")

    def handle(self, *_arguments: Any, **options: Any) -> None:
        self.stdout.write(create_account(options))


def create_account(options: dict[str, Any]) -> str:
    """Create or change the rows. Return the output: the token's secret, or a sentence."""
    email, role = options["email"].strip(), Role(options["role"])
    project_name = options["project"].strip()
    if not 1 <= len(project_name) <= 100:
        raise CommandError("A project's name has 1 to 100 characters.")
    user = User.objects.filter(email=email.lower()).first() or build_user(email, options["name"])
    with transaction.atomic():
        if options["superuser"]:
            user.is_superuser = user.is_staff = True
        user.save(update_fields=["is_superuser", "is_staff"] if user.pk else None)
        return admit(user, project_name, role, with_token=options["token"])


def admit(user: User, project_name: str, role: Role, *, with_token: bool) -> str:
    """Give the user the role in the project. Return the token's secret, or a sentence."""
    project = Project.objects.named(project_name)
    give_role(project, user, role)
    if not with_token:
        return f"{user.email} is {role} of {project}."
    # A viewer's role does not allow write tokens.
    scope = ApiToken.Scope.READ if role == Role.VIEWER else ApiToken.Scope.WRITE
    return ApiToken.issue(project, user, "create_account", scope=scope)[1]


def build_user(email: str, name: str) -> User:
    """Return a new account with the password from standard input."""
    try:
        validate_email(email)
    except ValidationError:
        raise CommandError(f"“{email}” is not an email address.") from None
    password = read_password()
    if not password:
        raise CommandError("A new account needs a password: send it on standard input.")
    try:
        validate_password(password, User(email=email, first_name=name))
    except ValidationError as error:
        raise CommandError(" ".join(error.messages)) from None
    return User.objects.build_user(email, password, first_name=name[:150])


def read_password() -> str:
    """Return one line of standard input; at a terminal, prompt for it without echo."""
    if sys.stdin.isatty():
        return getpass.getpass("Password: ", stream=sys.stderr)
    return sys.stdin.readline().rstrip("\r\n")


def give_role(project: Project, user: User, role: Role) -> None:
    """Add the user or change their role. Refuses to leave the project without a manager."""
    member = Membership.objects.filter(project=project, user=user).first()
    if member is None:
        project.admit(user, role)
        return
    try:
        member.change_role(role)
    except LastManager:
        raise CommandError(
            f"{user.email} is the only manager of {project}. Give another member the manager role first."
        ) from None
