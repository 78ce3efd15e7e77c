"""Page numbers and sizes, checked once for every list."""

from dataclasses import dataclass
from math import ceil

from ftproject.core.serializers import StrictIntegerField, StrictSerializer

MAX_PAGE_SIZE = 500
MAX_PAGE = 10_000_000


class PageSerializer(StrictSerializer):
    page = StrictIntegerField(default=1, min_value=1, max_value=MAX_PAGE)
    page_size = StrictIntegerField(default=20, min_value=1, max_value=MAX_PAGE_SIZE)


@dataclass(frozen=True)
class Page:
    page: int
    page_size: int
    total: int

    @property
    def offset(self) -> int:
        return (self.page - 1) * self.page_size

    @property
    def total_pages(self) -> int:
        return ceil(self.total / self.page_size)
