"""The router of the API: every route answers with and without a trailing slash, without a redirect."""

from rest_framework.routers import SimpleRouter


class EitherSlashRouter(SimpleRouter):
    def __init__(self) -> None:
        super().__init__()
        self.trailing_slash = "/?"
