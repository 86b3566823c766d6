"""Readers of streams: who opened one, and whether they may still read it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from django.contrib.auth import HASH_SESSION_KEY
from django.contrib.sessions.backends.base import SessionBase
from django.contrib.sessions.models import Session
from django.utils import timezone

from dashboard.models import Membership, User


@dataclass(frozen=True)
class Reader:
    """The session and the role in a project with which a stream was opened."""

    user_id: int
    project_id: int
    role: str
    session_key: str
    session_hash: str

    @classmethod
    def of(cls, user: User, session: SessionBase, project_id: int) -> Reader:
        role = Membership.objects.values_list("role", flat=True).get(user=user, project=project_id)
        session_hash = session.get(HASH_SESSION_KEY, "")
        return cls(user.pk, project_id, role, session.session_key or "", session_hash)

    def is_admitted(self) -> bool:
        return not refused_readers([self])


def refused_readers(readers: Iterable[Reader]) -> set[Reader]:
    """Return those who signed out, changed their password, or lost or changed their role in the project."""
    asked = list(readers)
    if not asked:
        return set()
    users = {reader.user_id for reader in asked}
    projects = {reader.project_id for reader in asked}
    members = Membership.objects.filter(project__in=projects, user__in=users, user__is_active=True)
    roles = {(user, project): role for user, project, role in members.values_list("user", "project", "role")}
    keys = [reader.session_key for reader in asked]
    open_keys = set(
        Session.objects.filter(session_key__in=keys, expire_date__gt=timezone.now()).values_list(
            "session_key", flat=True
        )
    )
    hashes = {user.pk: user.get_session_auth_hash() for user in User.objects.filter(pk__in=users)}
    return {
        reader
        for reader in asked
        if roles.get((reader.user_id, reader.project_id)) != reader.role
        or reader.session_key not in open_keys
        or hashes.get(reader.user_id) != reader.session_hash
    }
