"""llama.cpp's own server, which the embedded backend is too."""

from batches.backends.base import BackendKind, Model


class LlamaServer(BackendKind):
    name = "llama-server"
    title = "llama-server"

    def _owns(self, models: list[Model]) -> bool:
        return any(model.owned_by == "llamacpp" for model in models)
