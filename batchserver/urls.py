"""Every address: the API under /v1, Ollama's own under /api, the admin, and the pages for monitors."""

from django.contrib import admin
from django.urls import include, path
from drf_spectacular.renderers import OpenApiJsonRenderer2
from drf_spectacular.views import SpectacularAPIView

from batchserver import views
from common import logins

# Open even if keys are needed: the document has no data, and says how a key is sent.
document = SpectacularAPIView.as_view(authentication_classes=[], renderer_classes=[OpenApiJsonRenderer2])

admin.autodiscover()
urlpatterns = [
    path("v1/", include("files_api.urls")),
    path("v1/", include("batches.api.urls")),
    path("v1/openapi.json", document),
    path("api/", include("batches.api.ollama_urls")),
    path("admin/login/", logins.login),  # before the admin's own
    path("admin/", admin.site.urls),
    path("health", views.show_health),
    # A middleware answers these; here they have their addresses.
    path("livez", views.show_liveness),
    path("readyz", views.show_readiness),
    path("metrics", views.show_metrics),
    path("", views.show_home),
]

handler400 = "common.exception_handler.bad_request"
handler403 = "batchserver.views.forbidden"
handler404 = "batchserver.views.not_found"
handler500 = "common.exception_handler.server_error"
