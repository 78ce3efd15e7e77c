"""Reads the bash blocks out of the user's document, so that the tests run its own lines and not retyped ones."""

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^```(\w*)\s*$")


@dataclass(frozen=True)
class Block:
    """One fenced bash block and the heading it stands under."""

    heading: str
    text: str

    @property
    def is_curl(self) -> bool:
        return self.text.lstrip().startswith("curl ")


def bash_blocks(path: Path) -> list[Block]:
    blocks: list[Block] = []
    heading, language, lines = "", None, list[str]()
    for line in path.read_text(encoding="utf-8").splitlines():
        fence = FENCE.match(line)
        if fence and language is None:
            language, lines = fence.group(1) or "text", []
        elif fence:
            if language == "bash":
                blocks.append(Block(heading, "\n".join(lines)))
            language = None
        elif language is not None:
            lines.append(line)
        elif line.startswith("#"):
            heading = line.lstrip("#").strip()
    return blocks
