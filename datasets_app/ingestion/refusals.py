"""The refusals of an upload, each with its code, the row and column it means, and what to do."""

from ftproject.core.errors import InvalidInputError, Problem, TooLargeError, UnsupportedFormatError

MAX_COLUMNS = 10_000
MAX_NAME_LENGTH = 1000


def refuse(
    code: str, message: str, *, row: int | None = None, column: str | None = None, hint: str = ""
) -> InvalidInputError:
    """An error about one place of the file; rows are counted from 1, after the header."""
    place = ", ".join([*([f"row {row}"] if row else []), *([f"column {column!r}"] if column else [])])
    detail = f"{place}: {message}" if place else message
    problem = Problem(code=code, message=message, field="file", row=row, column=column)
    return InvalidInputError(detail[:1000], code=code, hint=hint, errors=[problem])


def unsupported(kind: str, hint: str) -> UnsupportedFormatError:
    return UnsupportedFormatError(f"The file is {kind}, not a CSV.", code="unsupported_file_type", hint=hint)


def too_large(message: str) -> TooLargeError:
    return TooLargeError(message, hint="Upload a part of the rows.")


def check_columns(names: list[str]) -> None:
    """Refuses names that a mapping could not tell apart or name."""
    if len(names) > MAX_COLUMNS:
        raise refuse("too_many_columns", f"{len(names)} columns; at most {MAX_COLUMNS} are taken.")
    problems = [*_blank_names(names), *_repeated_names(names), *_long_names(names)]
    if problems:
        raise InvalidInputError(
            "The header cannot be used: " + "; ".join(problem.message for problem in problems[:5]),
            code=problems[0].code,
            hint="Give every column a name of its own in the first line of the file.",
            errors=problems[:50],
        )


def _blank_names(names: list[str]) -> list[Problem]:
    return [
        Problem("blank_column_name", f"column {number} has no name", "file", column=name)
        for number, name in enumerate(names, start=1)
        if not name.strip()
    ]


def _repeated_names(names: list[str]) -> list[Problem]:
    stripped = [name.strip() for name in names]
    places: dict[str, list[int]] = {}
    for number, name in enumerate(stripped, start=1):
        places.setdefault(name, []).append(number)
    return [
        Problem("duplicate_column_name", f"the name {name!r} stands at columns {numbers}", "file", column=name)
        for name, numbers in places.items()
        if name and len(numbers) > 1
    ]


def _long_names(names: list[str]) -> list[Problem]:
    return [
        Problem("column_name_too_long", f"the name of column {number} has {len(name)} characters", "file")
        for number, name in enumerate(names, start=1)
        if len(name) > MAX_NAME_LENGTH
    ]
