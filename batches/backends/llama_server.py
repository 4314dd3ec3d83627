"""llama.cpp's own server, which the embedded backend is too."""

from batches.backends.base import JSON, BackendKind


class LlamaServer(BackendKind):
    name = "llama-server"
    title = "llama-server"

    def _owns(self, models: list[JSON]) -> bool:
        return any(model.get("owned_by") == "llamacpp" for model in models)
