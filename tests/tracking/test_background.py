from __future__ import annotations

import threading

from flr_bench.tracking.background import Background


def test_jobs_run_in_order_and_waiting_ends_when_all_are_done() -> None:
    done: list[int] = []
    background = Background(capacity=10)
    assert all(background.submit(lambda i=i: done.append(i)) for i in range(5))
    assert background.wait(30)
    assert done == [0, 1, 2, 3, 4]
    assert background.submit(lambda: done.append(5)), "after a pause it goes on"
    assert background.wait(30)
    assert done[-1] == 5


def test_what_does_not_fit_is_refused_and_nobody_waits() -> None:
    release, running = threading.Event(), threading.Event()

    def hang() -> None:
        running.set()
        release.wait(60)

    done: list[int] = []
    background = Background(capacity=2)
    assert background.submit(hang)
    assert running.wait(30)
    assert [background.submit(lambda i=i: done.append(i)) for i in range(4)] == [True, True, False, False]
    assert not background.wait(0.01), "waiting is bounded"
    release.set()
    assert background.wait(30)
    assert done == [0, 1]


def test_closing_drops_what_waits_and_takes_no_more() -> None:
    release, running = threading.Event(), threading.Event()
    done: list[int] = []

    def hang() -> None:
        running.set()
        release.wait(60)

    background = Background(capacity=5)
    background.submit(hang)
    assert running.wait(30)
    background.submit(lambda: done.append(1))
    background.close()
    release.set()
    assert background.wait(30)
    assert not background.submit(lambda: done.append(2))
    assert done == []
