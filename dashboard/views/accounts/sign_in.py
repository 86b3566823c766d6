"""Sign-in and passwords: allauth's views, which here answer an invalid form with 422."""

from __future__ import annotations

import functools
from collections.abc import Callable

from allauth.account import views
from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponseBase
from django.template.response import TemplateResponse
from django.views.decorators.http import require_POST

View = Callable[..., HttpResponseBase]


def with_form_status(view: View) -> View:
    """Answer 422 instead of 200 when the page shows its form again with errors."""

    @functools.wraps(view)
    def wrapper(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponseBase:
        response = view(request, *args, **kwargs)
        context = response.context_data if isinstance(response, TemplateResponse) else None
        if response.status_code == 200 and context and "form" in context and context["form"].errors:
            response.status_code = 422
        return response

    return wrapper


login = login_not_required(with_form_status(views.login))
logout = login_not_required(require_POST(views.logout))
inactive = login_not_required(views.account_inactive)
password_change = with_form_status(views.password_change)
password_set = with_form_status(views.password_set)
password_reset = login_not_required(with_form_status(views.password_reset))
password_reset_done = login_not_required(views.password_reset_done)
password_reset_from_key = login_not_required(with_form_status(views.password_reset_from_key))
password_reset_from_key_done = login_not_required(views.password_reset_from_key_done)
