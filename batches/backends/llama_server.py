"""llama.cpp's own server, which the embedded backend is too."""

from batches.backends.base import JSON, BackendKind


class LlamaServer(BackendKind):
    name = "llama-server"
    title = "llama-server"

    def _owns(self, models: list[JSON]) -> bool:
        return any(model.get("owned_by") == "llamacpp" for model in models)

    def prepare(self, endpoint: str, body: JSON, model: str) -> JSON:
        sent = super().prepare(endpoint, body, model)
        if endpoint != "/v1/responses" and sent.get("max_completion_tokens") is not None:
            sent.setdefault("max_tokens", sent.pop("max_completion_tokens"))
        return sent
