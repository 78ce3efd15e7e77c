"""The routes: one router for the API in both slash forms, the schema and its offline page, the admin."""

from django.contrib import admin
from django.urls import URLPattern, URLResolver, path, re_path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerView

import datasets_app.urls
import evaluation_app.urls
import ftproject.system.urls
import inference_app.urls
import sessions_app.urls
import training_app.urls
from ftproject.core.routers import EitherSlashRouter

router = EitherSlashRouter()
for app_urls in (ftproject.system, datasets_app, training_app, evaluation_app, inference_app, sessions_app):
    app_urls.urls.register(router)

urlpatterns: list[URLPattern | URLResolver] = [
    *router.urls,
    *ftproject.system.urls.pages,
    re_path(r"^api/schema/?$", SpectacularAPIView.as_view(), name="schema"),
    re_path(r"^api/docs/?$", SpectacularSwaggerView.as_view(url_name="schema"), name="docs"),
    path("admin/", admin.site.urls),
]

handler400 = "ftproject.core.views.bad_request"
handler404 = "ftproject.core.views.not_found"
handler500 = "ftproject.core.views.server_error"
