"""Held-out rows answered while training: what is generated is what the rows alone would get, and what is too long."""

import pytest

from ftproject.engine.conversations import ResolvedConversation
from ftproject.engine.encoding import IGNORED, EncodedRow, RowEncoder
from ftproject.engine.heldout_answers import LONGEST_ANSWER, HeldoutAnswers, cut_answers
from ftproject.engine.hyperparameters import GenerationParams
from ftproject.engine.models import load_base_model
from ftproject.engine.processors import load_processor
from ftproject.engine.resident import ResidentModel
from tests.engine.support import QUESTION, TINY, row

LENGTHS = (0, 9, 3, 30)  # words before the question


@pytest.mark.slow
def test_rows_of_different_lengths_are_answered_in_a_batch_as_each_alone(
    resident: ResidentModel, digit_rows: list[ResolvedConversation]
) -> None:
    rows = [
        row(place, prompt="Look. " * words + QUESTION, response="7", images=digit_rows[place].image_paths)
        for place, words in enumerate(LENGTHS)
    ]
    processor = load_processor(TINY)
    encoded = [RowEncoder(processor).encode(item, with_response=True) for item in rows]
    answers = HeldoutAnswers(encoded, [""] * len(rows), processor, batch_size=len(rows))
    params = GenerationParams(max_new_tokens=answers.max_new_tokens, do_sample=False)
    alone = [resident.generate([item], params, adapter=None)[0].text for item in rows]
    assert all(alone)
    together = HeldoutAnswers(encoded, alone, processor, batch_size=len(rows))
    assert together(load_base_model(TINY, device="cpu")) == {"eval_exact_match": 1.0, "eval_token_f1": 1.0}


def test_true_answers_that_are_longer_than_what_is_generated_are_said_to_lower_the_scores() -> None:
    def encoded(index: int, answer: int) -> EncodedRow:
        return EncodedRow(index, [0] * (5 + answer), [IGNORED] * 5 + [7] * answer, ())

    whole = LONGEST_ANSWER + 2  # with the end of the turn and its newline
    assert cut_answers([encoded(3, whole)]) is None
    said = cut_answers([encoded(3, whole), encoded(4, whole + 1)]) or ""
    assert "1 of 2 held-out rows (row 4 is the first)" in said
