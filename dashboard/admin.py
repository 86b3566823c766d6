"""Django's admin for superusers: users and projects. Sign-in uses the product's page with its rate limits."""

from __future__ import annotations

from typing import ClassVar

from allauth.account.decorators import secure_admin_login
from django.contrib import admin
from django.contrib.auth.admin import UserAdmin
from django.forms import ModelForm
from django.http import HttpRequest

from dashboard.models import Membership, Project, User

admin.site.login = secure_admin_login(admin.site.login)  # type: ignore[method-assign]
admin.site.site_header = admin.site.site_title = "Graftworks"


def is_superuser(request: HttpRequest) -> bool:
    """Restrict the admin to superusers; staff status alone is not enough."""
    return bool(request.user.is_active and request.user.is_superuser)


admin.site.has_permission = is_superuser  # type: ignore[method-assign]


class MembershipInline(admin.TabularInline):  # type: ignore[type-arg]
    """The members of a project."""

    model = Membership
    extra = 0


@admin.register(Project)
class ProjectAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Projects and their members."""

    list_display = ("name", "slug", "created_at")
    search_fields = ("name",)
    prepopulated_fields = {"slug": ("name",)}
    inlines = (MembershipInline,)


class AccountCreationForm(ModelForm):  # type: ignore[type-arg]
    """Creates an account without a password; the account's page sets one.

    The admin adds rows in a transaction, and hashing there would keep SQLite's only lock.
    """

    class Meta:
        model = User
        fields = ("email",)
        help_texts: ClassVar = {"email": "The account gets its password on the next page."}

    def clean_email(self) -> str:
        return str(self.cleaned_data["email"]).lower()

    def save(self, commit: bool = True) -> User:
        self.instance.set_unusable_password()
        user: User = super().save(commit)
        return user


@admin.register(User)
class AccountAdmin(UserAdmin):  # type: ignore[type-arg]
    """Users, by email address."""

    ordering = ("email",)
    list_display = ("email", "first_name", "last_name", "is_active", "is_superuser", "last_login")
    list_filter = ("is_active", "is_superuser")
    search_fields = ("email", "first_name", "last_name")
    readonly_fields = ("last_login", "date_joined")
    fieldsets = (
        (None, {"fields": ("email", "password")}),
        ("Name", {"fields": ("first_name", "last_name")}),
        ("Access", {"fields": ("is_active", "is_staff", "is_superuser")}),
        ("Dates", {"fields": ("last_login", "date_joined")}),
    )
    add_form = AccountCreationForm
    add_fieldsets = ((None, {"fields": ("email",)}),)
    filter_horizontal = ()
