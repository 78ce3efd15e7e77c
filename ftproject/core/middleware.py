"""Middleware: answers problems for what fails outside the views."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

from ftproject.core.problem import describe_exception, problem_response

GetResponse = Callable[[HttpRequest], HttpResponseBase]
API_PREFIXES = ("/api/", "/v1/")


class ProblemMiddleware:
    """Answers problems where Django would answer an HTML page, and keeps API answers out of caches."""

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        response = self.get_response(request)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    def process_exception(self, request: HttpRequest, exc: Exception) -> HttpResponseBase | None:
        if not request.path.startswith(API_PREFIXES):
            return None
        status, parts, headers = describe_exception(exc, request.path)
        return problem_response(request, status, parts.pop("code"), parts.pop("detail"), headers=headers, **parts)
