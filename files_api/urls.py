from rest_framework.routers import SimpleRouter

from files_api.views import UploadViewSet

router = SimpleRouter(trailing_slash=False)
router.register("uploads", UploadViewSet, basename="upload")
urlpatterns = router.urls
