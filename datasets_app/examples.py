"""The examples of the user's document, for the OpenAPI page."""

from typing import Any

UPLOAD: dict[str, Any] = {
    "filename": "dataset.csv",
    "num_rows": 709,
    "num_columns": 3,
    "columns": ["prompt", "response", "image_url"],
    "sample_rows": [
        {"prompt": "What is shown?", "response": "A cat", "image_url": "https://example.com/cat.jpg"},
    ],
    "dataset_id": 1,
    "format": "csv",
    "encoding": "utf-8",
    "delimiter": ",",
    "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "size_bytes": 51234,
    "is_current": True,
    "created_at": "2026-02-17T10:30:00Z",
}
COLUMNS: dict[str, Any] = {"columns": ["col1", "col2"], "dataset_id": 1}
INFO: dict[str, Any] = {
    "loaded": True,
    **{name: value for name, value in UPLOAD.items() if name != "sample_rows"},
}
MAPPING: dict[str, Any] = {
    "prompt_column": "prompt",
    "response_column": "response",
    "ground_truth_column": None,
    "image_url_columns": ["input_image_url", "swapped_image"],
    "image_separator": None,
    "mandatory_columns": ["input_image_url"],
}
PREVIEW: dict[str, Any] = {"page": 1, "page_size": 5}
ARCHIVE: dict[str, Any] = {
    "dataset_id": 1,
    "stored": 708,
    "refused": 1,
    "ignored": 2,
    "nested_archives": 0,
    "errors": [
        {"field": "photos/notes.txt", "code": "image_not_an_image", "message": "not an image of the formats PNG, ..."}
    ],
}
