"""Who may look at what in the admin."""

from django.http import HttpRequest


def may_look(request: HttpRequest, model: str) -> bool:
    """Whether this person may look at rows of `model` (`app.name`): staff who may view or change them, as Django itself
    decides for a page. One answer for lists, pages, parts of pages, links and downloads."""
    app, _, name = model.partition(".")
    user = request.user
    return bool(user.is_staff) and any(user.has_perm(f"{app}.{verb}_{name}") for verb in ("view", "change"))
