"""The figures of a run as lists and events carry them: without the tables that grow with the square of the labels."""

from typing import Any

# Up to here the tables are small enough to go everywhere; 500 labels are 2 MB a run.
MOST_LABELS_IN_BRIEF = 20
TABLES = ("confusion_matrix", "per_class", "unparsed_by_label")


def brief_metrics(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a run; beyond 20 labels the tables of its classification are null, the run itself has them."""
    figures = metrics.get("classification")
    if not figures or len(figures["labels"]) <= MOST_LABELS_IN_BRIEF:
        return metrics
    parts = {name: {**figures[name], **dict.fromkeys(TABLES)} for name in ("seen", "unseen") if figures.get(name)}
    return {**metrics, "classification": {**figures, **parts, **dict.fromkeys(TABLES)}}
