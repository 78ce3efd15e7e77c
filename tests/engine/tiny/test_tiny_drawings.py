"""The drawn tasks: reproducible by index, honest in their answers, and never showing a digit."""

from typing import Any

import numpy as np
import pytest
from numpy.random import RandomState
from PIL import ImageDraw

from ftproject.engine.tiny import drawings
from ftproject.engine.tiny.drawings import PROMPTS, DrawnSample, Scene, TaskName, draw_sample, draw_scene
from ftproject.engine.tiny.glyphs import LETTERS, draw_glyph
from ftproject.engine.tiny.shapes import COLORS, SHAPES

TASKS = tuple(PROMPTS)


def pixels(sample: DrawnSample) -> list[bytes]:
    return [image.tobytes() for image in sample.images]


@pytest.mark.parametrize("task", TASKS)
def test_the_same_index_gives_the_same_picture_prompt_and_answer(task: TaskName) -> None:
    first, again = draw_sample(7, task), draw_sample(7, task)

    assert pixels(first) == pixels(again)
    assert (first.prompt, first.answer) == (again.prompt, again.answer)


def test_an_index_does_not_depend_on_what_was_drawn_before_it() -> None:
    alone = draw_sample(11)
    for index in range(10):
        draw_sample(index)

    assert pixels(draw_sample(11)) == pixels(alone)


@pytest.mark.parametrize("task", TASKS)
def test_other_indexes_give_other_pictures(task: TaskName) -> None:
    drawn = {tuple(pixels(draw_sample(index, task))) for index in range(40)}

    assert len(drawn) == 40


@pytest.mark.parametrize("task", TASKS)
def test_every_picture_is_rgb_of_64_by_64_pixels_and_no_placeholder_is_left_in_a_prompt(
    task: TaskName,
) -> None:
    for index in range(30):
        sample = draw_sample(index, task)
        assert {(image.mode, image.size) for image in sample.images} == {("RGB", (64, 64))}
        assert len(sample.images) == (2 if task == "same_shape" else 1)
        assert "{" not in sample.prompt


def test_the_index_ranges_of_training_measuring_and_demo_do_not_meet() -> None:
    starts = (drawings.HELD_OUT_FIRST_INDEX, drawings.DEMO_FIRST_INDEX, drawings.PRETRAINING_FIRST_INDEX)

    assert starts == tuple(sorted(starts))
    assert min(np.diff(starts)) >= 100_000


def test_the_tasks_answer_in_disjoint_words() -> None:
    answers = {task: {draw_sample(index, task).answer for index in range(250)} for task in TASKS}

    assert answers["letter"] == set(LETTERS)
    assert answers["shape"] == set(SHAPES)
    assert answers["color"] == set(COLORS)
    assert answers["count"] == set("123456789")
    assert answers["yes_no"] == answers["same_shape"] == {"yes", "no"}


def test_the_letters_leave_out_every_digit_and_the_zero_like_o() -> None:
    assert LETTERS.isalpha()
    assert "O" not in LETTERS


def test_no_digit_glyph_is_ever_written_into_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = ImageDraw.ImageDraw.text

    def recording(self: ImageDraw.ImageDraw, xy: Any, text: str, *args: Any, **kwargs: Any) -> None:
        written.append(text)
        write(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", recording)
    for index in range(600):
        draw_sample(drawings.PRETRAINING_FIRST_INDEX + index)

    assert len(written) > 100
    assert set(written) <= set(LETTERS)


def test_a_glyph_is_never_blank() -> None:
    inked = [np.asarray(draw_glyph(RandomState(index), "W", 64)).max() for index in range(50)]

    assert min(inked) > 60


def test_a_count_is_the_number_of_separate_items_in_the_picture() -> None:
    for index in range(40):
        sample = draw_sample(index, "count")
        level = np.asarray(sample.images[0]).max(axis=2)
        cells = [level[11 + 21 * row, 11 + 21 * column] > 60 for row in range(3) for column in range(3)]
        assert str(sum(cells)) == sample.answer


def test_an_items_colour_is_the_colour_in_the_picture() -> None:
    for index in range(40):
        sample = draw_sample(index, "color")
        middle = np.asarray(sample.images[0])[32, 32]
        nearest = min(COLORS, key=lambda name: float(np.abs(middle - np.array(COLORS[name])).sum()))
        assert nearest == sample.answer


def test_a_scene_names_the_left_or_the_upper_item_first() -> None:
    seen: set[str | None] = set()
    for index in range(60):
        image, scene = draw_scene(RandomState(index))
        seen.add(scene.relation)
        if scene.relation is not None:
            assert nearest_color(np.asarray(image)[first_half(scene)]) == scene.items[0].color
    assert seen == {"left of", "above", None}


def test_a_single_item_is_described_without_a_relation() -> None:
    scene = Scene((drawings.Item("star", "red"),), None)

    assert scene.caption() == "a red star"


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(KeyError):
        draw_sample(0, "digit")  # type: ignore[arg-type]


def first_half(scene: Scene) -> tuple[slice, slice]:
    whole, half = slice(None), slice(0, 32)
    return (whole, half) if scene.relation == "left of" else (half, whole)


def nearest_color(region: Any) -> str:
    colors = region.reshape(-1, 3).astype(int)
    brightest = colors[colors.max(axis=1) > 60]
    mean = np.median(brightest, axis=0)
    return min(COLORS, key=lambda name: float(np.abs(mean - np.array(COLORS[name])).sum()))
