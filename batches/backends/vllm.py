"""vLLM's OpenAI server."""

from batches.backends.base import Ask, BackendKind, Model


class Vllm(BackendKind):
    name = "vllm"
    title = "vLLM"
    most_in_flight = 256  # its own bound on a consumer card

    def _owns(self, models: list[Model]) -> bool:
        return any(model.owned_by == "vllm" for model in models)

    def _version(self, ask: Ask) -> str:
        _, body = ask("/version")
        return str(body.get("version", "")) if isinstance(body, dict) else ""
