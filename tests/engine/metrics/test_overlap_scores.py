"""chrF, ROUGE-L and ANLS against other implementations and the papers' definitions."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ftproject.engine.metrics import (
    character_f_score,
    levenshtein_similarity,
    normalised_text,
    rouge_l,
    rouge_tokens,
)
from ftproject.engine.metrics.base import TextPair
from ftproject.engine.metrics.chrf import ChrF
from tests.engine.metrics.oracles import ascii_texts, levenshtein, longest_common_subsequence, texts


def similarity_of_the_paper(prediction: str, truth: str, threshold: float) -> float:
    """Biten et al. 2019, equation 1, with one answer a question."""
    one, other = normalised_text(prediction).lower(), normalised_text(truth).lower()
    if not one and not other:
        return 1.0
    distance = levenshtein(one, other) / max(len(one), len(other))
    return 1 - distance if distance < threshold else 0.0


def f_score_of_the_paper(prediction: str, truth: str, order: int, beta: int) -> float:
    """Popović 2015: precision and recall averaged over the n-gram orders that both texts have, then F-beta."""
    one, other = ("".join(text.split()) for text in (normalised_text(prediction), normalised_text(truth)))
    precisions, recalls = [], []
    for size in range(1, min(order, len(one), len(other)) + 1):
        grams = [Counter(text[at : at + size] for at in range(len(text) - size + 1)) for text in (one, other)]
        common = (grams[0] & grams[1]).total()
        precisions.append(common / grams[0].total())
        recalls.append(common / grams[1].total())
    precision, recall = fmean(precisions), fmean(recalls)
    both = beta**2 * precision + recall
    return (1 + beta**2) * precision * recall / both if both else 0.0


@given(texts, texts, st.sampled_from([(6, 2), (3, 1), (1, 3)]))
def test_chrf_is_the_papers_definition(prediction: str, truth: str, parameters: tuple[int, int]) -> None:
    """torchmetrics is no second opinion here: it counts the orders that short texts cannot have as zero."""
    order, beta = parameters
    assume(normalised_text(prediction) and normalised_text(truth))
    found = character_f_score(prediction, truth, char_order=order, beta=beta)
    assert found == pytest.approx(f_score_of_the_paper(prediction, truth, order, beta))


@given(texts, texts)
def test_chrf_is_sacrebleus_sentence_score_by_a_hundred(prediction: str, truth: str) -> None:
    from sacrebleu import sentence_chrf

    prediction, truth = normalised_text(prediction), normalised_text(truth)
    assume(prediction and truth)
    assert character_f_score(prediction, truth) == pytest.approx(sentence_chrf(prediction, [truth]).score / 100)


@pytest.mark.parametrize(
    ("prediction", "truth", "value"),
    [("", "", 1.0), ("", "a", 0.0), ("a", "", 0.0), ("a", "a", 1.0), (" a\n", "a", 1.0), ("A", "a", 0.0)],
)
def test_chrf_of_empty_and_equal_texts(prediction: str, truth: str, value: float) -> None:
    assert character_f_score(prediction, truth) == value


def test_chrf_takes_its_orders_from_the_request() -> None:
    pair = TextPair("the cat sat", "the sat cat")
    assert ChrF().score(pair).value != ChrF(word_order=2).score(pair).value


@given(ascii_texts, ascii_texts)
def test_rouge_l_is_googles_on_ascii(prediction: str, truth: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    assume(rouge_tokens(prediction) or rouge_tokens(truth))
    expected = RougeScorer(["rougeL"], use_stemmer=False).score(truth, prediction)["rougeL"].fmeasure
    assert rouge_l(prediction, truth) == pytest.approx(expected)


@settings(max_examples=30)
@given(ascii_texts, ascii_texts)
def test_rouge_l_is_torchmetrics_on_ascii(prediction: str, truth: str) -> None:
    from torchmetrics.functional.text import rouge_score

    assume(rouge_tokens(prediction) or rouge_tokens(truth))
    expected = rouge_score(prediction, truth, rouge_keys="rougeL")["rougeL_fmeasure"]
    assert rouge_l(prediction, truth) == pytest.approx(float(expected), abs=1e-6)


@given(texts, texts)
def test_rouge_l_is_the_longest_common_subsequence_by_definition(prediction: str, truth: str) -> None:
    one, other = rouge_tokens(prediction), rouge_tokens(truth)
    assume(one and other)
    common = longest_common_subsequence(one, other)
    precision, recall = common / len(one), common / len(other)
    expected = 2 * precision * recall / (precision + recall) if common else 0.0
    assert rouge_l(prediction, truth) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "truth", "value"),
    [
        ("", "", 1.0),
        ("...", "", 1.0),
        ("", "a", 0.0),
        ("a", "", 0.0),
        ("ein Kreis", "ein Kreis.", 1.0),
        ("रेलवे स्टेशन", "रेलवे स्टेशन", 1.0),
        ("красный круг", "синий круг", 0.5),
    ],
)
def test_rouge_l_of_empty_texts_and_of_letters_beyond_ascii(prediction: str, truth: str, value: float) -> None:
    assert rouge_l(prediction, truth) == value


@given(texts, texts, st.sampled_from([0.1, 0.5, 1.0]))
def test_anls_is_the_papers_equation(prediction: str, truth: str, threshold: float) -> None:
    expected = similarity_of_the_paper(prediction, truth, threshold)
    assert levenshtein_similarity(prediction, truth, threshold=threshold) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "truth", "value"),
    [
        ("", "", 1.0),
        ("", "a", 0.0),
        ("a", "", 0.0),
        ("ab", "ac", 0.0),  # a distance of just the threshold is too far
        ("abc", "abd", 2 / 3),
        ("ABC", "abc", 1.0),
        ("a  b", "a b", 1.0),
    ],
)
def test_anls_of_empty_texts_case_and_the_threshold_itself(prediction: str, truth: str, value: float) -> None:
    assert levenshtein_similarity(prediction, truth) == pytest.approx(value)


@given(texts, texts)
def test_all_three_stay_between_nought_and_one_and_equal_texts_are_perfect(one: str, other: str) -> None:
    for metric in (character_f_score, rouge_l, levenshtein_similarity):
        assert 0.0 <= metric(one, other) <= 1.0
        assert metric(one, one) == 1.0
