"""The errors that services raise; each knows its HTTP status, a stable code and what the user can do next."""

from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any, ClassVar


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one field, row or column of the input."""

    code: str
    message: str
    field: str | None = None
    row: int | None = None
    column: str | None = None

    def as_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}


class ProductError(Exception):
    """Base of everything a service refuses; `problem.exception_handler` turns it into an RFC 9457 answer."""

    status: ClassVar[int] = 400
    default_code: ClassVar[str] = "invalid_input"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        hint: str = "",
        errors: list[Problem] | None = None,
        headers: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or self.default_code
        self.hint = hint
        self.errors = errors or []
        self.headers = headers or {}
        self.extra = extra or {}


class InvalidInputError(ProductError):
    pass


class UnauthorizedError(ProductError):
    status = 401
    default_code = "authentication_required"


class ForbiddenError(ProductError):
    status = 403
    default_code = "permission_denied"


class NotFoundError(ProductError):
    status = 404
    default_code = "not_found"


class ConflictError(ProductError):
    status = 409
    default_code = "conflict"


class TooLargeError(ProductError):
    status = 413
    default_code = "too_large"


class UnsupportedFormatError(ProductError):
    status = 415
    default_code = "unsupported_media_type"


class BusyError(ProductError):
    status = 429
    default_code = "too_many_requests"


class UnavailableError(ProductError):
    status = 503
    default_code = "unavailable"


class UpstreamError(ProductError):
    status = 502
    default_code = "upstream_failed"


def nearest_name(name: str, known: list[str]) -> str | None:
    """The known name that `name` was probably meant to be, or None."""
    folded = {candidate.casefold(): candidate for candidate in known}
    found = get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return folded[found[0]] if found else None


def did_you_mean(name: str, known: list[str]) -> str:
    """A sentence that names the nearest known name, else all of them."""
    near = nearest_name(name, known)
    if near:
        return f"Did you mean {near!r}?"
    return f"Known: {', '.join(known) or 'none'}."
