"""What a failed question pauses: the whole backend, or one model whose lines then wait while others go on.

The pause of a backend ends when a health probe gets an answer (registry). The pause of a model ends when the model
passes a trial; a drive asks for one at growing intervals.
"""

import logging
from dataclasses import replace
from datetime import timedelta
from textwrap import shorten
from typing import Any

from django.conf import settings

from batches import backends, failing, registry
from batches.backends import error_bodies
from batches.backends.in_flight import Call
from batches.backends.replies import Reply, Verdict, compact, parsed
from batches.models import Backend, PausedModel
from common import database

logger = logging.getLogger(__name__)

MISCONFIGURED_FOR = timedelta(seconds=30)
# A model that could not be loaded for this time never will be: its lines fail.
UNLOADABLE_FOR = timedelta(hours=1)
MOST_SAID = 300  # letters of what the server said


def pause_after(backend: Backend, endpoint: str, model: str, failed: Call[Any]) -> None:
    """Pause what the reply to `failed` shows to be out of order. Safe to run twice."""
    reply = failed.reply or Reply(failed.verdict)
    match reply.verdict:
        case Verdict.UNREACHABLE:
            _pause(backend, backends.unreachable_hint())
        case Verdict.MISCONFIGURED:
            _pause(backend, reply.message, at_least=MISCONFIGURED_FOR)
        case _:
            _pause_model(backend, endpoint, model, reply, took=timedelta(seconds=failed.duration_s))


def _pause(backend: Backend, reason: str, *, at_least: timedelta | None = None) -> None:
    backend.pause(reason, at_least=at_least)
    logger.warning("paused: %s", reason)


def _pause_model(backend: Backend, endpoint: str, model: str, reply: Reply, *, took: timedelta) -> None:
    reason = _what_is_wrong(backend, endpoint, model, reply)
    patience = _patience(reply.verdict)
    # At least as long as the question took, so that a question that hangs leaves half of the time to other models.
    paused = PausedModel.pause(backend, endpoint, model, reason, at_least=took, patience=patience)
    logger.warning("paused: %s", reason)
    is_hopeless = patience is not None and paused.since <= database.now() - patience
    if is_hopeless and not registry.is_elsewhere(backend, model):
        logger.error("%s was missing or could not be loaded for too long: its lines fail", model)
        if reply.verdict is Verdict.MODEL_MISSING:
            reply = _missing_for_good(backend, endpoint, model, reply)
        failing.mark_model(endpoint, model, reply)  # the tick starts the step that fails them
        paused.delete()


def _patience(verdict: Verdict) -> timedelta | None:
    """How long lines wait for a model that is out of order in this way before they fail; None if they wait on."""
    match verdict:
        case Verdict.UNLOADABLE:
            return UNLOADABLE_FOR
        case Verdict.MODEL_MISSING:
            return timedelta(seconds=settings.MODEL_MISSING_PATIENCE_S)
    return None


def _is_missing(backend: Backend, endpoint: str, model: str, reply: Reply) -> str:
    """That the server has the model no more, and what to do about it."""
    kind = backends.kind_named(backend.kind)
    lost = kind.empty_list_hint() if not reply.listed else ""
    hint = backends.missing_model_hint(backend.kind, model, reply.listed, endpoint=endpoint, lines_wait=True)
    what = f"{kind.title} at {backend.url} does not have the model {model} any more."
    return " ".join(filter(None, [what, backends.listing(sorted(reply.listed)), lost, hint]))


def _missing_for_good(backend: Backend, endpoint: str, model: str, reply: Reply) -> Reply:
    """What each line of a model gets that the server has not had for too long: OpenAI's error, with what to do."""
    error = {"message": _is_missing(backend, endpoint, model, reply), "type": "invalid_request_error", "param": "model"}
    return replace(reply, status=404, body=compact({"error": error | {"code": "model_not_found"}}))


def _what_is_wrong(backend: Backend, endpoint: str, model: str, reply: Reply) -> str:
    kind = backends.kind_named(backend.kind)
    what = f"HTTP {reply.status}" if reply.status else reply.code
    if reply.verdict is Verdict.MODEL_MISSING:
        return _is_missing(backend, endpoint, model, reply)
    if said := _said(reply):
        what += f": {said}"
    if reply.verdict is Verdict.UNLOADABLE:
        return f"{kind.title} cannot load {model} ({what}). See its log."
    if reply.verdict is Verdict.BUSY:
        return f"{kind.title} is too busy to answer for {model} ({what})."
    if reply.status == 404:
        return f"{kind.title} at {backend.url} has no {endpoint} (HTTP 404). Update it, or check its address."
    if reply.code == "request_timeout":
        return f"{kind.title} takes requests for {model} and does not answer them. {kind.stuck_hint()}"
    return f"{kind.title} fails every request of {model}, the plainest too ({what}). See its log."


def _said(reply: Reply) -> str:
    """The server's own words, for a person to read; a question of ours holds no prompt that they could repeat."""
    message = error_bodies.read(parsed(reply.body.encode())).message if reply.body else ""
    return shorten(message, MOST_SAID, placeholder=" …").rstrip(".")
