"""Sign-in and passwords: allauth's pages, which answer a refused form with 422 as all other forms do."""

from __future__ import annotations

import functools
from collections.abc import Callable

from allauth.account import views
from django.http import HttpRequest, HttpResponseBase
from django.template.response import TemplateResponse
from django.views.decorators.http import require_POST

View = Callable[..., HttpResponseBase]


def refusing(view: View) -> View:
    """The view, with 422 in place of 200 where the page shows its form again with errors."""

    @functools.wraps(view)
    def answer(request: HttpRequest, *args: object, **kwargs: object) -> HttpResponseBase:
        response = view(request, *args, **kwargs)
        shown = response.context_data if isinstance(response, TemplateResponse) else None
        if response.status_code == 200 and shown and "form" in shown and shown["form"].errors:
            response.status_code = 422
        return response

    return answer


login = refusing(views.login)
logout = require_POST(views.logout)
inactive = views.account_inactive
password_change = refusing(views.password_change)
password_set = refusing(views.password_set)
password_reset = refusing(views.password_reset)
password_reset_done = views.password_reset_done
password_reset_from_key = refusing(views.password_reset_from_key)
password_reset_from_key_done = views.password_reset_from_key_done
