"""What a check found, how bad it is, and what to do about it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """`error`: something that was saved or is asked for does not work. `fix` loses nothing and says what it did."""

    level: Level
    code: str
    message: str
    remedy: str = ""
    fix: Callable[[], str] | None = None

    def as_dict(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "code": self.code,
            "message": self.message,
            "remedy": self.remedy,
            "fixable": self.fix is not None,
        }


Check = Callable[[], Iterator[Finding]]
