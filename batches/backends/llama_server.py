"""llama.cpp's own server; the embedded backend is one too."""

from django.conf import settings

from batches.backends import slots
from batches.backends.base import BackendKind
from batches.backends.parameters import others
from batches.backends.replies import JSON, count
from batches.backends.states import Ask, Exchange, Model, ModelState, PromptCache


class LlamaServer(BackendKind):
    name = "llama-server"
    title = "llama-server"
    cache = PromptCache.BY_SLOT
    slots_told_at = "/props"
    tables = others.LLAMA_SERVER

    def _owns(self, models: list[Model]) -> bool:
        return any(model.owned_by == "llamacpp" for model in models)

    def _parallel(self, ask: Ask) -> int | None:
        _, properties = ask(self.slots_told_at)
        return count(properties, "total_slots") or None

    def slot_requests(self, model: str) -> list[tuple[str, JSON]]:
        # For one whose /props a proxy hides.
        body = {"model": model, "stream": True, "max_tokens": slots.ANSWER_TOKENS, "temperature": 0}
        return [("/v1/completions", body | {"prompt": each}) for each in slots.BEGINNINGS]

    def describe(self, exchange: Exchange, model: str) -> ModelState | None:
        _, properties = exchange("/props", None)
        _, listed = exchange("/v1/models", None)
        models = listed.get("data") if isinstance(listed, dict) else None
        # llama-server has one model, and answers with that one whatever name is asked for.
        loaded = models[0] if isinstance(models, list) and models else None
        return ModelState(
            self.name,
            context_tokens=count(properties, "default_generation_settings.n_ctx"),  # of each slot
            most_context_tokens=count(loaded, "meta.n_ctx_train"),
        )

    def missing_endpoint_hint(self, endpoint: str) -> str:
        return f"This llama-server has no {endpoint}. Update it, or take a server that has it (BACKEND_URL)."

    def larger_context_hint(self, tokens: int) -> str:
        return f"Start llama-server with --ctx-size {tokens} times the number of its slots (--parallel)."


class EmbeddedModel(LlamaServer):
    """The llama-server that comes with this product. The template of its model has no tools."""

    name = "embedded"
    title = "The embedded model"
    tables = others.EMBEDDED

    def _owns(self, models: list[Model]) -> bool:
        return settings.EMBEDDED_BACKEND and super()._owns(models)
