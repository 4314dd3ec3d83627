from rest_framework.routers import SimpleRouter

from batches.views import BatchViewSet, ModelViewSet

router = SimpleRouter(trailing_slash=False)
router.register("batches", BatchViewSet, basename="batch")
router.register("models", ModelViewSet, basename="model")
urlpatterns = router.urls
