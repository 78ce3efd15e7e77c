"""Guessing the admin's password: five tries for a name from one address, then a quarter of an hour of nothing."""

from datetime import timedelta
from typing import Any

import pytest
from axes.models import AccessAttempt
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone

pytestmark = pytest.mark.django_db
RIGHT = "a right password"


@pytest.fixture(autouse=True)
def admin() -> User:
    return User.objects.create_superuser("root", password=RIGHT)


def log_in(password: str, name: str = "root", address: str = "203.0.113.9", **headers: Any) -> Any:
    client = Client(HTTP_HOST="localhost", REMOTE_ADDR=address, **headers)
    return client.post(reverse("admin:login"), {"username": name, "password": password})


def exhaust(**more: str) -> None:
    for number in range(5):
        log_in(f"wrong {number}", **more)


def test_the_right_password_logs_in_after_four_wrong_ones() -> None:
    for _ in range(4):
        assert log_in("wrong").status_code == 200
    assert log_in(RIGHT).status_code == 302


def test_after_five_wrong_passwords_not_even_the_right_one_is_tried() -> None:
    exhaust()
    assert log_in(RIGHT).status_code == 429


def test_a_name_is_not_shut_out_from_everywhere_and_an_address_not_for_everybody() -> None:
    User.objects.create_superuser("other", password=RIGHT)
    exhaust()
    assert log_in(RIGHT, address="10.0.0.1").status_code == 302
    assert log_in(RIGHT, name="other").status_code == 302


def test_no_header_gives_a_guesser_another_address() -> None:
    exhaust()
    for name in ("HTTP_X_FORWARDED_FOR", "HTTP_X_REAL_IP", "HTTP_FORWARDED"):
        assert log_in(RIGHT, **{name: "198.51.100.1"}).status_code == 429


def test_trying_on_does_not_make_it_longer_and_it_ends() -> None:
    exhaust()
    before = AccessAttempt.objects.get().attempt_time
    log_in("wrong again")
    assert AccessAttempt.objects.get().attempt_time == before
    AccessAttempt.objects.update(attempt_time=timezone.now() - timedelta(minutes=16))
    assert log_in(RIGHT).status_code == 302


def test_passwords_are_not_kept() -> None:
    log_in("needle in the haystack")
    assert "needle" not in str(list(AccessAttempt.objects.values()))
