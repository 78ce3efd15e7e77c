"""The preflight report as a table for a terminal."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

REASONS_SHOWN = 8
ROWS_SHOWN = 8
LABELS_SHOWN = 5
Line = tuple[str, str]


def print_report(report: dict[str, Any], console: Console) -> None:
    """What was found, what to know, and whether it can be trained."""
    table = Table(title=f"Preflight of dataset {report['dataset_id']} for {escape(report['model_name'])}")
    table.add_column("")
    table.add_column("found", overflow="fold")
    for name, found in lines_of(report):
        table.add_row(name, escape(found))
    console.print(table)
    for warning in report["warnings"]:
        console.print(f"Note: {warning}", markup=False)
    for blocker in report["blockers"]:
        console.print(f"Cannot train: {blocker['message']} ({blocker['code']})", markup=False)
    if report["can_train"]:
        console.print("It can be trained.")


def lines_of(report: dict[str, Any]) -> Iterator[Line]:
    yield from _rows(report)
    yield from _images(report["images"])
    yield from _lengths(report)
    yield from _answers(report)
    yield from _costs(report)


def _rows(report: dict[str, Any]) -> Iterator[Line]:
    rows, split = report["rows"], report["split"]
    yield "rows", f"{rows['usable']} of {rows['total']} usable"
    for reason in rows["reasons"][:REASONS_SHOWN]:
        yield "  skipped", f"{reason['count']}: {reason['reason']} (rows {numbers(reason['rows'], reason['count'])})"
    if split["holdout_fraction"]:
        yield "split", f"{split['train_rows']} to train on, {split['heldout_rows']} held out"


def _images(images: dict[str, Any]) -> Iterator[Line]:
    missing = images["not_fetched"]
    yield "images", f"{images['ready']} ready, {images['failed']} failed, {missing['images']} not fetched yet"
    for failure in images["failures"][:ROWS_SHOWN]:
        where = f"row {failure['row']}, {failure['column']!r}"
        yield "  failed", f"{where}: {failure['message']} ({failure['code']})"
    if missing["images"]:
        yield "  not fetched", f"{missing['hint']} Rows {numbers(missing['first_rows'], missing['rows'])}"


def _lengths(report: dict[str, Any]) -> Iterator[Line]:
    tokens, long = report["tokens"], report["too_long"]
    if tokens["reason"]:
        yield "tokens", f"not counted: {tokens['reason']}"
    elif tokens["counted"]:
        spread = ", ".join(f"{name} {tokens[name]}" for name in ("min", "median", "p90", "p99", "max"))
        yield "tokens a row", f"{spread}; {tokens['vision']} of {tokens['total']} are image tokens"
    if not long["count"]:
        return
    yield "too long", f"{long['count']} over {long['max_seq_length']}: rows {numbers(long['rows'], long['count'])}"
    remedies = long["remedies"]
    yield "  remedy", f"raise max_seq_length to {remedies['raise_max_seq_length']['max_seq_length']}"
    if pixels := remedies["lower_max_pixels"]:
        yield "  remedy", f"lower max_pixels to {pixels['max_pixels']}: rescues {pixels['rescues']}"
    yield "  remedy", f"do nothing: they are left out, {remedies['drop_rows']['rows_left']} rows stay"


def _answers(report: dict[str, Any]) -> Iterator[Line]:
    twice, torn, labels = report["duplicates"], report["conflicts"], report["labels"]
    yield "duplicates", f"{twice['extra_rows']} rows in {twice['groups']} groups"
    for group in twice["examples"][:3]:
        yield "  the same", f"rows {numbers(group['rows'], group['count'])}"
    yield "conflicts", f"{torn['rows']} rows in {torn['groups']} groups"
    for group in torn["examples"][:3]:
        answers = " / ".join(repr(answer) for answer in group["answers"])
        yield "  differ", f"rows {numbers(group['rows'], group['count'])}: {answers}"
    shown = ", ".join(f"{item['label']!r} {item['share']:.1%}" for item in labels["labels"][:LABELS_SHOWN])
    yield "answers", f"{labels['distinct']} distinct in {labels['column']!r}: {shown}"


def _costs(report: dict[str, Any]) -> Iterator[Line]:
    time, memory, disk = report["time"], report["memory"], report["disk"]
    yield "time", f"{time['steps']} steps, {seconds(time['seconds'])}: {time['how']}"
    total = "unknown" if memory["total_mb"] is None else f"{memory['total_mb']} MB"
    of_device = f" of {memory['device_mb']} MB" if memory["device_mb"] else ""
    yield "memory", f"{total}{of_device}: {memory['how']}"
    for term in memory["terms"]:
        yield f"  {term['name']}", f"{term['mb']:.0f} MB: {term['how']}"
    yield "disk", f"{disk['wanted_free_mb']} MB wanted, {disk['free_mb']} MB free"


def seconds(value: float | None) -> str:
    return "unknown" if value is None else f"about {value:.0f} s"


def numbers(rows: list[int], count: int) -> str:
    shown = ", ".join(map(str, rows[:ROWS_SHOWN]))
    return f"{shown}, ..." if count > min(len(rows), ROWS_SHOWN) else shown
