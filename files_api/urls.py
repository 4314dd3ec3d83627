from rest_framework.routers import SimpleRouter

from files_api.views import FileViewSet, UploadViewSet

router = SimpleRouter(trailing_slash=False)
router.register("files", FileViewSet, basename="file")
router.register("uploads", UploadViewSet, basename="upload")
urlpatterns = router.urls
