"""One at a time, in the order of coming."""

import threading
import time

from inference_app.turnstile import Turnstile


def line_up(turnstile: Turnstile, name: str, order: list[str], *, first: bool = False) -> threading.Thread:
    def pass_through() -> None:
        assert turnstile.take(5, first=first)
        order.append(name)
        turnstile.give()

    thread = threading.Thread(target=pass_through)
    before = len(turnstile)
    thread.start()
    while len(turnstile) == before:
        time.sleep(0.005)
    return thread


def test_those_who_wait_get_their_turn_in_the_order_they_came() -> None:
    turnstile, order = Turnstile(), list[str]()
    assert turnstile.take(0)
    threads = [line_up(turnstile, name, order) for name in "abcd"]
    turnstile.give()
    for thread in threads:
        thread.join()
    assert order == list("abcd")


def test_one_may_be_let_in_first() -> None:
    turnstile, order = Turnstile(), list[str]()
    assert turnstile.take(0)
    threads = [line_up(turnstile, "a", order), line_up(turnstile, "urgent", order, first=True)]
    turnstile.give()
    for thread in threads:
        thread.join()
    assert order == ["urgent", "a"]


def test_waiting_ends_at_its_time_and_leaves_the_line() -> None:
    turnstile = Turnstile()
    assert turnstile.take(0)
    started = time.monotonic()
    assert not turnstile.take(0.1)
    assert 0.1 <= time.monotonic() - started < 1
    assert len(turnstile) == 0
    turnstile.give()
    assert turnstile.take(0)


def test_one_who_gives_up_does_not_block_those_behind() -> None:
    turnstile, order = Turnstile(), list[str]()
    assert turnstile.take(0)
    impatient = threading.Thread(target=turnstile.take, args=(0.2,))
    impatient.start()
    behind = line_up(turnstile, "behind", order)
    impatient.join()
    turnstile.give()
    behind.join()
    assert order == ["behind"]
