"""The comparison as one page: it needs nothing, runs nothing, shows users' text as text, and stays small."""

import base64
import hashlib
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image
from rest_framework.test import APIClient

from datasets_app.models import Dataset
from evaluation_app.comparison import pictures
from evaluation_app.comparison.page import shares_of
from evaluation_app.models import EvaluationRun
from tests.evaluation_app.comparison.conftest import MakeRun, answers_right_in
from training_app.models import Adapter

pytestmark = pytest.mark.django_db
ATTACKS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'-alert(1)-'",
    "</p></li></ol><iframe src=//evil.example></iframe>",
    "<!-- rows -->",
    "-->\n<script>alert(1)</script>",
    "{{ 7|add:7 }}{% now 'Y' %}",
    "javascript:alert(1)",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<style>body{background:url(//evil.example)}</style>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<base href=//evil.example>",
    "</title><script>alert(1)</script>",
    "\u202etxt.exe\u2066<b>bold</b>",
    "<a href='//evil.example'>x</a>",
    "<form action=//evil.example><button>x",
]
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "table", "tr", "th", "td", "div", "span",
    "svg", "line", "circle", "ul", "ol", "li", "input", "label", "header", "img",
}  # fmt: skip


class Reader(HTMLParser):
    """Every element with its attributes, and the text of the rows."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(api: APIClient, runs: list[EvaluationRun], **query: Any) -> str:
    asked = {"baseline_run_id": runs[0].pk, "candidate_run_id": runs[1].pk, "format": "html", "num_resamples": 100}
    response = api.get("/api/evaluation/compare/export", {**asked, **query})
    assert response.status_code == 200, response.content
    return b"".join(response.streaming_content).decode()  # type: ignore[attr-defined]


def picture(color: str, size: int = 400) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (size, size), color).save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


@pytest.fixture
def attacked(make_dataset: Callable[..., Dataset], make_run: MakeRun, make_adapter: Callable[..., Adapter]) -> Any:
    rows = [(text, text, f"note {number}") for number, text in enumerate(ATTACKS)]
    dataset = make_dataset(rows, columns=("<b>prompt", "answer", "note"), name="rows<img src=x onerror=1>.csv")
    adapter = make_adapter(dataset, name="a<b>c", trained=[], heldout=range(len(ATTACKS)))
    base = make_run(dataset, ATTACKS)
    return [base, make_run(dataset, ["<script>alert(2)</script>", *ATTACKS[1:]], adapter=adapter)]


def test_texts_of_users_stay_text(api: APIClient, attacked: list[EvaluationRun]) -> None:
    text = page_of(api, attacked)
    reader = Reader(text)
    assert {name for name, _ in reader.elements} <= ALLOWED
    shown = "".join(reader.texts)
    for attack in ATTACKS:
        assert attack in shown
    handlers = [name for _, attributes in reader.elements for name in attributes if name.startswith("on")]
    assert handlers == []
    assert "a<b>c" in shown


def test_nothing_is_loaded_from_elsewhere(api: APIClient, attacked: list[EvaluationRun]) -> None:
    reader = Reader(page_of(api, attacked))
    loaded = [
        value
        for _, attributes in reader.elements
        for name, value in attributes.items()
        if name in {"src", "href", "action", "srcset", "data", "background", "poster", "style", "xlink:href"}
    ]
    assert all((value or "").startswith("data:image/jpeg;base64,") for value in loaded)
    assert [item.get("http-equiv") for item in reader.all("meta") if "http-equiv" in item] == [
        "Content-Security-Policy"
    ]


def test_the_page_forbids_itself_everything_but_its_style_and_its_pictures(
    api: APIClient, attacked: list[EvaluationRun]
) -> None:
    text = page_of(api, attacked)
    style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    assert len(style) == 1
    digest = base64.b64encode(hashlib.sha256(style[0].encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    (meta,) = [item for item in Reader(text).all("meta") if "http-equiv" in item]
    assert meta["content"] == policy
    query = f"baseline_run_id={attacked[0].pk}&candidate_run_id={attacked[1].pk}&format=html"
    header = api.get(f"/api/evaluation/compare/export?{query}")["Content-Security-Policy"]
    assert header == f"{policy}; frame-ancestors 'none'; sandbox"


def test_verdict_counts_and_intervals_stand_on_the_page(api: APIClient, numbers: Any, make_run: MakeRun) -> None:
    dataset = numbers(40)
    runs = [make_run(dataset, answers_right_in(range(n), 40), metrics=["cer"]) for n in (5, 30)]
    text = page_of(api, runs)
    assert 'class="verdict better"' in text
    assert "Better: base tiny-qwen3-vl is right in 30 of 40 rows, base tiny-qwen3-vl in 5" in text
    assert "cer <span" in text
    assert "lower is better" in text
    assert "(p = 6e-08)" in text
    assert re.search(r"Fixed 25</label>", text)
    assert text.count('<li class="row ') == 40


def test_pictures_are_small_and_inside(api: APIClient, make_dataset: Callable[..., Dataset], make_run: MakeRun) -> None:
    dataset = make_dataset([("a?", "1", picture("red")), ("b?", "2", "")], image_url_columns=["note"])
    reader = Reader(page_of(api, [make_run(dataset, ["1", "2"]), make_run(dataset, ["1", "2"])]))
    (image,) = reader.all("img")
    head, _, data = (image["src"] or "").partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (128, 128)
    assert image["alt"] == "image 1 of row 0"


def test_a_picture_that_is_not_here_is_named_and_not_fetched(
    api: APIClient, make_dataset: Callable[..., Dataset], make_run: MakeRun
) -> None:
    dataset = make_dataset([("a?", "1", "https://example.com/a.png")], image_url_columns=["note"])
    text = page_of(api, [make_run(dataset, ["1"]), make_run(dataset, ["1"])])
    assert Reader(text).all("img") == []
    assert "cannot be shown" in text


def test_the_page_stops_at_its_weight_in_pictures(
    api: APIClient, make_dataset: Callable[..., Dataset], make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "MOST_BYTES", 1000)
    rows = [(f"{n}?", f"{n}", picture(color)) for n, color in enumerate(("red", "green", "blue", "white"))]
    dataset = make_dataset(rows, image_url_columns=["note"])
    text = page_of(api, [make_run(dataset, ["x"] * 4), make_run(dataset, ["y"] * 4)])
    assert 0 < len(Reader(text).all("img")) < 4
    assert "images left out" in text


def test_a_long_comparison_shows_what_changed_first_and_says_what_is_left_out(
    api: APIClient, numbers: Any, make_run: MakeRun
) -> None:
    dataset = numbers(100)
    runs = [
        make_run(dataset, answers_right_in(range(50), 100)),
        make_run(dataset, answers_right_in(range(10, 90), 100)),
    ]
    text = page_of(api, runs, max_rows=20)
    shown = re.findall(r'<li class="row (\w+)">', text)
    assert shown == ["fixed"] * 8 + ["broken"] * 8 + ["both_wrong"] * 2 + ["both_right"] * 2
    assert "20 rows are shown, 80 are left out" in text
    assert re.search(r"Fixed 8 of 40</label>", text)


@pytest.mark.parametrize(
    ("counts", "limit", "expected"),
    [
        ((0, 0, 0, 0), 20, (0, 0, 0, 0)),
        ((1, 0, 0, 0), 1, (1, 0, 0, 0)),
        ((5, 5, 5, 5), 20, (5, 5, 5, 5)),
        ((90, 2, 90, 90), 20, (14, 2, 2, 2)),
        ((2, 90, 90, 90), 20, (2, 14, 2, 2)),
        ((1, 1, 90, 90), 20, (1, 1, 16, 2)),
        ((1, 1, 3, 90), 20, (1, 1, 3, 15)),
    ],
)
def test_the_shares_fill_the_page_and_no_more(counts: tuple[int, ...], limit: int, expected: tuple[int, ...]) -> None:
    names = ("fixed", "broken", "both_wrong", "both_right")
    shares = shares_of(dict(zip(names, counts, strict=True)), limit)
    assert tuple(shares[name] for name in names) == expected
    assert sum(shares.values()) == min(limit, sum(counts))


def test_a_very_long_answer_is_cut_and_says_so(api: APIClient, numbers: Any, make_run: MakeRun) -> None:
    dataset = numbers(1)
    text = page_of(api, [make_run(dataset, ["0"]), make_run(dataset, ["word " * 5000])])
    assert len(text) < 30_000
    assert "more characters)" in text


def test_a_comparison_without_rows_is_a_page_too(api: APIClient, numbers: Any, make_run: MakeRun) -> None:
    dataset = numbers(2)
    text = page_of(api, [make_run(dataset, {0: "0"}), make_run(dataset, {1: "1"})])
    assert "Cannot tell: there is no row that both runs evaluated." in text
    assert '<li class="row ' not in text


def test_only_rows_of_one_transition_are_shown(api: APIClient, numbers: Any, make_run: MakeRun) -> None:
    dataset = numbers(6)
    runs = [make_run(dataset, answers_right_in([0, 1], 6)), make_run(dataset, answers_right_in([1, 2, 3], 6))]
    assert re.findall(r'<li class="row (\w+)">', page_of(api, runs, transition="fixed")) == ["fixed", "fixed"]
