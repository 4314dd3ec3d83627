"""What every kind of model server has in common: how a body is made ready, and what a reply means for its line."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import ClassVar

from batches.backends import error_bodies
from batches.backends.parameters import others
from batches.backends.parameters.table import Table, Translation
from batches.backends.purposes import Purpose
from batches.backends.replies import (
    JSON,
    SERVER_ERRORS,
    Reply,
    Usage,
    Verdict,
    compact,
    enveloped,
    parsed,
    usage_of,
)
from batches.backends.rules import Rule, verdict_of
from batches.backends.states import (
    Ask,
    CutPrompt,
    Derived,
    Exchange,
    Model,
    ModelState,
    Occupancy,
    PromptCache,
    Read,
    State,
    listed_models,
)
from common import strict_json


class BackendKind:
    """An OpenAI-compatible server of an unknown kind. The known kinds override what differs."""

    name: ClassVar[str] = "openai"
    title: ClassVar[str] = "The model server"
    tables: ClassVar[Mapping[str, Table]] = others.UNKNOWN  # what becomes of a request's members, by endpoint
    loads_on_demand: ClassVar[bool] = False  # `load` loads a model, and the server may unload it by itself
    cache: ClassVar[PromptCache] = PromptCache.UNKNOWN
    slots_told_at: ClassVar[str] = ""  # the path where the server says how many calls it serves at once
    library_models: ClassVar[Mapping[Purpose, str]] = {}  # one for each purpose that a command installs, if any does
    # The server begins every call that it takes, beside others, so that no call waits for another one's end.
    begins_all: ClassVar[bool] = False
    derives: ClassVar[bool] = False  # models with another context can be derived from the users' models
    echoes_request_id_at: ClassVar[frozenset[str]] = frozenset()  # endpoints whose answers bear the X-Request-Id
    most_in_flight: ClassVar[int] = 64  # if the server does not say how many calls it serves at once
    tells_occupancy: ClassVar[bool] = False  # `occupancy` says something, unless a proxy hides it

    # The first row that fits decides; a status that no row names is the line's own fault.
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(Verdict.REFUSED, SERVER_ERRORS, says=lambda error: error.is_refusal),
        # A line can choose words of the message: `borne_out` asks the server before all lines of the model fail.
        Rule(Verdict.MODEL_MISSING, (404,), says=lambda error: error.is_about_model),
        Rule(Verdict.MODEL_MISSING, (400,), says=lambda error: error.code == "model_not_found"),  # LM Studio
        Rule(Verdict.ENDPOINT_MISSING, (404,), says=lambda error: error.is_about_route),
        Rule(Verdict.REFUSED, (404,)),
        Rule(Verdict.MISCONFIGURED, (301, 302, 303, 307, 308, 401, 403)),
        Rule(Verdict.BUSY, (429, 499, 502, 503)),
        Rule(Verdict.REFUSED, (501,)),
        Rule(Verdict.FAILED, (408, 504)),
        Rule(Verdict.FAILED, SERVER_ERRORS),
    )

    def recognise(self, ask: Ask) -> State | None:
        """The server's state if the server is of this kind, else None. Lets through what `ask` raises."""
        models = self.models(ask)
        if models is None or not self._owns(models):
            return None
        names = [model.id for model in models]
        return State(self.name, self._version(ask), models, names, self._parallel(ask))

    def models(self, ask: Ask) -> list[Model] | None:
        """The models that the server lists, without derived ones; None if the reply is no list of models."""
        return listed_models(ask)

    def _owns(self, models: list[Model]) -> bool:
        return True

    def _version(self, ask: Ask) -> str:
        return ""

    def _parallel(self, ask: Ask) -> int | None:
        return None

    def describe(self, exchange: Exchange, model: str) -> ModelState | None:
        """What the server says about a model that it has loaded; None if it says nothing.

        Asks the server a question or two, so call it in a thread that may wait. Lets through what `exchange` raises.
        """
        return None

    def occupancy(self, read: Read) -> Occupancy | None:
        """How busy the server is, if it `tells_occupancy`; None if it does not say.

        The server answers quickly, also beside running calls. Lets through what `read` raises.
        """
        return None

    def loaded(self, exchange: Exchange) -> dict[str, str]:
        """The models that the server has loaded, by name, if it `loads_on_demand`; of each a text that changes whenever
        a request for it ends and no other is at work, or nothing if the server has none.

        The server answers quickly, also beside running calls. Lets through what `exchange` raises.
        """
        return {}

    def identity(self, name: str) -> str:
        """The same text for all names that the server takes for one model; empty for a name that it refuses."""
        return name

    def is_same(self, name: str, other: str) -> bool:
        """Whether both are names of one model."""
        return name == other or self.identity(name) == self.identity(other) != ""

    def listed_name(self, models: Collection[str], name: str) -> str:
        """The one of `models`, names that the server lists, that is this model; empty if none is."""
        return name if name in models else next((each for each in models if self.is_same(each, name)), "")

    def empty_list_hint(self) -> str:
        """Why a server that had models may list none, and what to do; empty if that is not known."""
        return ""

    def give_back_hint(self, model: str, stand_in: str) -> str:
        """What to do so that lines which wait for a model that no command installs get one; `stand_in` is listed, or
        empty."""
        return f"Serve {model} again under this name."

    def name_to_install(self, model: str) -> str:
        """The name by which a command at the server installs this model; empty if there is no such command for it."""
        return ""

    def install_command(self, model: str) -> str:
        """What to type at the server so that it has this model, by its `name_to_install`; empty if it has none."""
        return ""

    def translate(self, endpoint: str, body: JSON, *, stream: bool = False) -> Translation:
        """The body to send for a client's or a line's body, and what of it this server will not heed.

        A line with such a finding is refused: a clear error is better than an answer to another request. The members
        that ask for a stream go only with `stream`; `model` stays as it is. Raises nothing.
        """
        return self.tables[endpoint].translate(body, stream=stream)

    def judge(self, endpoint: str, status: int, content: bytes) -> Reply:
        """What a complete HTTP answer means."""
        body = parsed(content)
        if 200 <= status < 300:
            problem = (
                f"The reply is not JSON, or nested deeper than {strict_json.MOST_LEVELS} levels."
                if body is None
                else self.incomplete(endpoint, body)
            )
            if problem or body is None:
                return Reply(Verdict.FAILED, code="incomplete_response", message=problem or "")
            return Reply(Verdict.ANSWERED, status, compact(self.hand_out(body)), usage=usage_of(body))
        text = content[:10_000].decode(errors="replace")
        error = error_bodies.read(body, text)
        verdict = verdict_of(self.rules, endpoint, status, error)
        # The status that clients go by, whatever the server calls it: they try a 500 again, and a 400 never.
        if verdict is Verdict.REFUSED and status >= 500 and error.is_refusal:
            status = error.status if error.status in error_bodies.REFUSALS else 400
        told = error_bodies.handed_out(body, error, status, endpoint) if body else None
        if verdict is Verdict.CRASHED and status < 500:
            status, told = 500, {"error": {"message": error.message, "type": "api_error", "param": None, "code": None}}
        reply = Reply(verdict, status, compact(told) if told else enveloped(status, text))
        if verdict is Verdict.REFUSED and "context_length_exceeded" in (error.code, error.openai_code(status)):
            return replace(reply, is_too_long=True, prompt_tokens=self.prompt_tokens(error.message))
        if verdict is Verdict.MISCONFIGURED:
            reply = replace(reply, message=self.misconfigured_hint(status))
        return reply

    def borne_out(self, exchange: Exchange, endpoint: str, model: str, reply: Reply) -> Reply:
        """The reply to one request, which says that its model or its endpoint is missing, with the verdict that the
        server bears out: by its list of models, and by a trial of the endpoint. Lets through what `exchange` raises.
        """
        models = self.models(lambda path: exchange(path, None))
        if models is None:
            return replace(reply, verdict=Verdict.FAILED)  # nobody knows what answered
        if reply.verdict is Verdict.MODEL_MISSING:
            names = tuple(each.id for each in models)
            is_listed = self.listed_name(names, model)
            return replace(reply, verdict=Verdict.UNLOADABLE) if is_listed else replace(reply, listed=names)
        status, answer = exchange(endpoint, self.trial(endpoint, model))
        if verdict_of(self.rules, endpoint, status, error_bodies.read(answer)) is not Verdict.ENDPOINT_MISSING:
            return replace(reply, verdict=Verdict.FAILED)
        error = {"message": self.missing_endpoint_hint(endpoint), "type": "invalid_request_error", "param": None}
        return replace(reply, body=compact({"error": error | {"code": "unknown_url"}}))

    def missing_endpoint_hint(self, endpoint: str) -> str:
        """What to do about a server that answers, and has not this endpoint."""
        return f"{self.title} has no {endpoint}. Take a server that has it (BACKEND_URL)."

    def hand_out(self, body: JSON) -> JSON:
        """What users get of a whole answer: all of the answer, with ids that no other answer has."""
        return body

    def cut_prompt(self, exchange: Exchange, endpoint: str, sent: JSON, usage: Usage) -> CutPrompt | None:
        """What is wrong if this server left out a part of the prompt without saying so; None if it read the whole.

        Called for each answer. May ask the server a question, and lets through what `exchange` raises. Raises Unchecked
        if the server's answer to the question leaves it open: the line's answer then counts for nothing.
        """
        return None

    def prompt_tokens(self, refusal: str) -> int:
        """The tokens of a prompt that the context cannot hold, by the words that refuse it; 0 if they do not say."""
        return 0

    def derived_name(self, model: str, tokens: int, mark: str) -> str:
        """The name of a model that is derived from `model` to give it a context of `tokens`; empty if a server of this
        kind can derive none. `mark` tells the models of one database from those of others."""
        return ""

    def derived(self, name: str) -> Derived | None:
        """What the name of a derived model says, whosoever made it; None for any other name."""
        return None

    def derive(self, exchange: Exchange, name: str) -> bool:
        """Have the server make the derived model of this name; whether it did. Safe to run again. Lets through what
        `exchange` raises."""
        return False

    def deletion(self, model: str) -> tuple[str, JSON] | None:
        """Path and body of a DELETE that removes a model from the server; None if there is none."""
        return None

    def room_for_context_hint(self) -> str:
        """What to change so that a larger context goes onto the GPU."""
        return self.less_memory_hint()

    def incomplete(self, endpoint: str, body: JSON) -> str:
        """Why the body of a 200 is no answer after all; empty if it is an answer."""
        match endpoint:
            case "/v1/chat/completions" | "/v1/completions":
                choices = body.get("choices")
                if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
                    return "The reply has no choices."
                part = "message" if endpoint == "/v1/chat/completions" else "text"
                if choices[0].get(part) is None or not choices[0].get("finish_reason"):
                    return "The reply broke off: it has no finish_reason."
            case "/v1/embeddings":
                if not isinstance(body.get("data"), list) or not body["data"]:
                    return "The reply has no data."
            case "/v1/responses":
                if not isinstance(body.get("output"), list):
                    return "The reply has no output."
        return ""

    def slot_requests(self, model: str) -> list[tuple[str, JSON]]:
        """Paths and bodies of streamed requests by which the slots of `model` can be counted (backends.slots) if the
        server does not tell how many calls it computes at once. Empty if it has no slots."""
        return []

    def behind_persons(self, body: JSON) -> JSON:
        """The body with what tells the server to begin persons' requests before this one; the same object if the server
        cannot be told."""
        return body

    def may_refuse_rank(self, status: int, content: bytes) -> bool:
        """Whether the server may have refused a body for what `behind_persons` put into it."""
        return False

    def note_rank_refused(self, *, is_cause: bool) -> None:
        """The body was sent again without it. `is_cause`: and was not refused then."""

    def load(self, endpoint: str, model: str) -> tuple[str, JSON] | Callable[[Exchange], None] | None:
        """Path and body of a request that loads the model and does nothing else, or what asks the server so; None if
        the server has no such request."""
        return None

    def unload(self, model: str) -> tuple[str, JSON] | None:
        """Path and body of a request that takes the model off the card; None if the server has none.

        Safe to send twice, and for a model that is not loaded. The answer may come before the memory is free.
        """
        return None

    def trial(self, endpoint: str, model: str) -> JSON:
        """A body so small and plain that a server in order answers it, whatever is wrong with the users' lines."""
        match endpoint:
            case "/v1/chat/completions":
                asked: JSON = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
            case "/v1/completions":
                asked = {"prompt": "Hi", "max_tokens": 1}
            case "/v1/responses":
                asked = {"input": "Hi", "max_output_tokens": 16}
            case _:
                asked = {"input": "Hi"}
        return asked | {"model": model}

    def larger_context_hint(self, tokens: int) -> str:
        """What to set so that a call may take `tokens` tokens, prompt and answer."""
        return f"Give the model server a context of {tokens:,} tokens."

    def less_memory_hint(self) -> str:
        """What to change so that the whole model goes onto the GPU."""
        return "Give it a smaller context or fewer calls at once, or take a smaller quantisation."

    def stuck_hint(self) -> str:
        """What to do if the server takes requests and does not answer them."""
        return "Restart it."

    def misconfigured_hint(self, status: int) -> str:
        if status in (401, 403):
            return f"{self.title} refused our key (HTTP {status}). Set BACKEND_API_KEY."
        return f"{self.title} sends us elsewhere (HTTP {status}). Check BACKEND_URL."
