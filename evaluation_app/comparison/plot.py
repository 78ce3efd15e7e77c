"""Where each difference and its interval stand on a common scale, as numbers for an SVG of the page."""

from typing import Any

WIDTH, MARGIN = 240.0, 8.0
PERCENT = frozenset({"exact_match", "accuracy"})


def interval_plot(differences: dict[str, dict[str, Any] | None]) -> list[dict[str, Any]]:
    """A line per metric: its texts, and x positions on a scale that all metrics share, 0 in the middle."""
    found = {name: one for name, one in differences.items() if one is not None}
    reach = max((abs(one[bound]) for one in found.values() for bound in ("low", "high")), default=0.0) or 1.0
    return [line_of(name, one, reach) for name, one in found.items()]


def line_of(name: str, one: dict[str, Any], reach: float) -> dict[str, Any]:
    return {
        "name": name,
        "baseline": number(one["baseline"], name),
        "candidate": number(one["candidate"], name),
        "difference": signed(one["difference"], name),
        "interval": f"{signed(one['low'], name)} to {signed(one['high'], name)}",
        "tone": tone_of(one),
        "lower_is_better": not one["higher_is_better"],
        "x": position(one["difference"], reach),
        "x_low": position(one["low"], reach),
        "x_high": position(one["high"], reach),
    }


def tone_of(one: dict[str, Any]) -> str:
    """Coloured only when the whole interval lies on one side of 0."""
    if one["low"] <= 0 <= one["high"]:
        return "even"
    return "good" if (one["difference"] > 0) == one["higher_is_better"] else "bad"


def position(value: float, reach: float) -> str:
    return f"{WIDTH / 2 + value / reach * (WIDTH / 2 - MARGIN):.1f}"


def number(value: float, name: str) -> str:
    return f"{100 * value:.1f} %" if name in PERCENT else f"{value:.3f}"


def signed(value: float, name: str) -> str:
    return f"{100 * value:+.1f}" if name in PERCENT else f"{value:+.3f}"
