"""Checks a column mapping against the columns of its dataset."""

from typing import Any

from ftproject.core.errors import InvalidInputError, Problem, did_you_mean

SINGLE = ("prompt_column", "response_column", "ground_truth_column")
MULTIPLE = ("image_url_columns", "mandatory_columns")
DEFAULTS: dict[str, Any] = {
    "ground_truth_column": None,
    "image_url_columns": [],
    "image_separator": None,
    "mandatory_columns": [],
}


def checked_mapping(columns: list[str], fields: dict[str, Any]) -> dict[str, Any]:
    """The mapping with its defaults; raises InvalidInputError that names every wrong column and the nearest one."""
    wanted = {**DEFAULTS, **fields}
    problems = [*_unknown_columns(columns, wanted), *_repeated_columns(wanted)]
    if not problems and wanted["prompt_column"] == wanted["response_column"]:
        message = "the response column is the prompt column: the model would be shown the answer"
        problems.append(Problem("same_column", message, "response_column", column=wanted["response_column"]))
    if problems:
        raise InvalidInputError(
            "; ".join(f"{problem.field}: {problem.message}" for problem in problems[:5]),
            code=problems[0].code,
            hint=f"The columns of this dataset: {', '.join(columns[:50])}.",
            errors=problems,
        )
    return wanted


def _unknown_columns(columns: list[str], wanted: dict[str, Any]) -> list[Problem]:
    named = [(field, wanted[field]) for field in SINGLE if wanted[field] is not None]
    named += [(field, name) for field in MULTIPLE for name in wanted[field]]
    known = set(columns)
    return [
        Problem(
            "unknown_column", f"there is no column {name!r}. {did_you_mean(name, columns[:200])}", field, column=name
        )
        for field, name in named
        if name not in known
    ]


def _repeated_columns(wanted: dict[str, Any]) -> list[Problem]:
    return [
        Problem("duplicate_column", f"{name!r} stands there twice", field, column=name)
        for field in MULTIPLE
        for name in dict.fromkeys(wanted[field])
        if wanted[field].count(name) > 1
    ]
