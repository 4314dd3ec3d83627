from django.urls import path
from rest_framework.routers import SimpleRouter

from batches.api.batches import BatchViewSet
from batches.api.files import FileViewSet
from batches.api.messages import MessagesViewSet
from batches.api.models import ModelViewSet
from batches.api.pass_through import PassThroughViewSet
from batches.lines.jsonl import ENDPOINTS

router = SimpleRouter(trailing_slash=False)
router.register("batches", BatchViewSet, basename="batch")
router.register("files", FileViewSet, basename="file")
router.register("models", ModelViewSet, basename="model")
urlpatterns = [
    *router.urls,
    *(
        path(endpoint.removeprefix("/v1/"), PassThroughViewSet.as_view({"post": "create"}, endpoint=endpoint))
        for endpoint in ENDPOINTS
    ),
    path("messages", MessagesViewSet.as_view({"post": "create"})),
]
