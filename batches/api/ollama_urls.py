"""The addresses of Ollama's own API that are passed through. Every other address under /api is a 404."""

from django.urls import path

from batches.api.ollama import BlobViewSet, ChangeViewSet, StateViewSet, UseViewSet
from batches.api.pass_through import Visit

urlpatterns = [
    *(
        path(name, UseViewSet.as_view({"post": "create"}, path=f"/api/{name}"))
        for name in ("chat", "generate", "embed", "embeddings")
    ),
    path("show", UseViewSet.as_view({"post": "create"}, path="/api/show", visit=Visit.QUESTION)),
    *(path(name, StateViewSet.as_view({"get": name})) for name in ("tags", "ps", "version")),
    path("pull", ChangeViewSet.as_view({"post": "change"}, path="/api/pull")),
    path("create", ChangeViewSet.as_view({"post": "change"}, path="/api/create", source=("from",))),
    path("push", ChangeViewSet.as_view({"post": "change"}, path="/api/push", source=("model", "name"))),
    path("copy", ChangeViewSet.as_view({"post": "change"}, path="/api/copy", source=("source",))),
    path(
        "delete",
        ChangeViewSet.as_view({"delete": "change"}, path="/api/delete", method="DELETE", source=("model", "name")),
    ),
    path("me", ChangeViewSet.as_view({"post": "me"})),
    path("blobs/<str:digest>", BlobViewSet.as_view({"head": "look", "post": "create"})),
]
