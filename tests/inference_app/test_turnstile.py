"""Users together, changers alone, all in the order of coming."""

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


def test_who_does_not_want_to_come_in_any_more_leaves_the_line() -> None:
    turnstile, gone = Turnstile(), threading.Event()
    assert turnstile.take(0)
    told: list[bool] = []
    waiting = threading.Thread(target=lambda: told.append(turnstile.enter(30, gone.is_set)))
    waiting.start()
    gone.set()
    waiting.join(10)
    assert (told, len(turnstile)) == ([False], 0)
    turnstile.give()
    assert not turnstile.held


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


def test_users_are_in_together_and_a_changer_waits_for_all_of_them() -> None:
    turnstile, order = Turnstile(), list[str]()
    assert turnstile.enter(0)
    assert turnstile.enter(0)
    changer = line_up(turnstile, "changer", order)
    assert turnstile.leave() == 1
    time.sleep(0.05)
    assert order == []
    assert turnstile.leave() == 0
    changer.join()
    assert order == ["changer"]


def test_a_changer_goes_before_users_that_came_later() -> None:
    turnstile, order = Turnstile(), list[str]()
    assert turnstile.enter(0)
    changer = line_up(turnstile, "changer", order)
    assert not turnstile.enter(0.05), "it came after the changer"
    turnstile.leave()
    changer.join()
    assert turnstile.enter(0)


def test_users_behind_a_changer_that_gives_up_come_in_at_once() -> None:
    turnstile = Turnstile()
    assert turnstile.enter(0)
    impatient = threading.Thread(target=turnstile.take, args=(0.2,))
    impatient.start()
    while len(turnstile) == 0:
        time.sleep(0.005)
    started = time.monotonic()
    assert turnstile.enter(5)
    assert time.monotonic() - started < 1
    impatient.join()


def test_nobody_is_in_with_a_changer() -> None:
    turnstile = Turnstile()
    assert turnstile.take(0)
    assert turnstile.held
    assert not turnstile.enter(0.02)
    turnstile.give()
    assert not turnstile.held
