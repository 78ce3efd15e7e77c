"""Scores of predictions against ground truths, per row and over a run; figures over labels are in classification."""

from ftproject.engine.metrics.anls import levenshtein_similarity
from ftproject.engine.metrics.base import Metric, Score, TextPair, Totals
from ftproject.engine.metrics.chrf import character_f_score
from ftproject.engine.metrics.error_rates import character_error_rate, edit_distance, word_error_rate
from ftproject.engine.metrics.json_fields import InvalidJsonError, compare_fields, parse_json
from ftproject.engine.metrics.normalization import Normalization
from ftproject.engine.metrics.numeric import numbers_match, parse_number
from ftproject.engine.metrics.options import (
    ALWAYS_SCORED,
    METRICS,
    RowScores,
    ScoringOptions,
    metric_schema,
    normalization_schema,
    parse_scoring_options,
)
from ftproject.engine.metrics.overlap import (
    SKIPPED,
    SampleScore,
    TokenScores,
    exact_match,
    score_sample,
    token_scores,
)
from ftproject.engine.metrics.rouge import rouge_l, rouge_tokens
from ftproject.engine.metrics.text import normalised_text, score_tokens, strip_punctuation
from ftproject.engine.metrics.totals import RunTotals, aggregate

__all__ = [
    "ALWAYS_SCORED",
    "METRICS",
    "SKIPPED",
    "InvalidJsonError",
    "Metric",
    "Normalization",
    "RowScores",
    "RunTotals",
    "SampleScore",
    "Score",
    "ScoringOptions",
    "TextPair",
    "TokenScores",
    "Totals",
    "aggregate",
    "character_error_rate",
    "character_f_score",
    "compare_fields",
    "edit_distance",
    "exact_match",
    "levenshtein_similarity",
    "metric_schema",
    "normalised_text",
    "normalization_schema",
    "numbers_match",
    "parse_json",
    "parse_number",
    "parse_scoring_options",
    "rouge_l",
    "rouge_tokens",
    "score_sample",
    "score_tokens",
    "strip_punctuation",
    "token_scores",
    "word_error_rate",
]
