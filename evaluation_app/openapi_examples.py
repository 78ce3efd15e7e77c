"""What the schema shows of evaluation requests and answers."""

from drf_spectacular.utils import OpenApiExample, OpenApiParameter

RUN_EXAMPLE = OpenApiExample(
    "Evaluate the base model",
    request_only=True,
    value={
        "adapter_path": None,
        "sample_limit": 100,
        "classification_mode": False,
        "generation_params": {"max_new_tokens": 256, "temperature": 0.1, "do_sample": False},
    },
)
METRICS_EXAMPLE = OpenApiExample(
    "Metrics with parameters, the answer extracted, labels with confidence",
    request_only=True,
    value={
        "adapter_path": "adapter_20260215_143022",
        "rows": "heldout",
        "metrics": ["cer", {"name": "numeric", "tolerance": 0.01}, {"name": "json_fields", "fields": ["total"]}],
        "normalization": {"casefold": True, "extract": "Answer: (.+)"},
        "classification_mode": True,
        "confidence": True,
    },
)
STARTED_EXAMPLE = OpenApiExample(
    "Started",
    response_only=True,
    value={"status": "started", "model_type": "base", "run_id": 3, "model_name": "tiny-qwen3-vl"},
)
LIST_EXAMPLE = OpenApiExample(
    "Finished runs",
    response_only=True,
    value={
        "runs": [
            {
                "id": 3,
                "model_type": "finetuned",
                "eval_mode": "token",
                "num_samples": 100,
                "num_skipped": 5,
                "exact_match_accuracy": 0.7368,
                "token_precision": 0.8521,
                "token_recall": 0.8234,
                "token_f1": 0.8375,
                "created_at": "2026-02-17T10:30:00Z",
            }
        ]
    },
)
IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key", str, OpenApiParameter.HEADER, description="The same key and body start one run only."
)
