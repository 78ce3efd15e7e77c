"""The view set that all API views build on: it validates bodies and query strings with strict serializers."""

from typing import Any

from django.http import HttpRequest, JsonResponse
from rest_framework.request import Request
from rest_framework.serializers import BaseSerializer
from rest_framework.viewsets import ViewSet

from ftproject.core.problem import problem_response


class ApiViewSet(ViewSet):
    """`check_body` and `check_query` answer 400 with every wrong field named, or give the checked values."""

    def check_body(self, serializer: type[BaseSerializer[Any]], request: Request) -> dict[str, Any]:
        return check(serializer, request.data)

    def check_query(self, serializer: type[BaseSerializer[Any]], request: Request) -> dict[str, Any]:
        return check(serializer, request.query_params)


def check(serializer: type[BaseSerializer[Any]], data: Any) -> dict[str, Any]:
    checked = serializer(data=data)
    checked.is_valid(raise_exception=True)
    values: dict[str, Any] = checked.validated_data
    return values


def not_found(request: HttpRequest, exception: Exception | None = None) -> JsonResponse:
    return problem_response(request, 404, "not_found", f"There is no route {request.path}.")


def server_error(request: HttpRequest) -> JsonResponse:
    return problem_response(request, 500, "internal_error", "Something went wrong on our side.")


def bad_request(request: HttpRequest, exception: Exception | None = None) -> JsonResponse:
    return problem_response(request, 400, "invalid_input", "The request could not be understood.")
