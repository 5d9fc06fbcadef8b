from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from flr_bench.runner.costs import UNKNOWN_BYTES, Admission, Costs
from flr_bench.runner.jobs import Job
from flr_bench.runner.schedule import Schedule


def cell(name: str, *needs: Any, cost: str = "c") -> Any:
    machine = SimpleNamespace(device="cpu", threads=1, devices=1)
    return SimpleNamespace(hash=name, label=name, needs=needs, kind="fit", cost_key=("fit", cost), machine=machine)


def names(job: Job | None) -> list[str]:
    assert job is not None
    return [cell.hash for cell in job.cells]


def drain(schedule: Schedule, failing: Callable[[str], bool] = lambda _: False) -> tuple[list[str], list[str]]:
    """Run all jobs one by one; what ran, and what was blocked."""
    ran, blocked = [], []
    while (job := schedule.next()) is not None:
        for each in job.cells:
            ran.append(each.hash)
            if failing(each.hash):
                schedule.fail(each.hash)
        schedule.finish(job)
        blocked += [each.hash for each, _ in schedule.take_blocked()]
    assert not schedule.waits
    return ran, blocked


def test_the_longest_remaining_path_comes_first() -> None:
    short, root = cell("short"), cell("root")
    middle = cell("middle", root)
    end = cell("end", middle)
    ran, _ = drain(Schedule([short, root, middle, end]))
    assert ran == ["root", "middle", "short", "end"]
    slow = Schedule([short, root, middle, end], lambda each: 9.0 if each.hash == "short" else 1.0)
    assert names(slow.next()) == ["short"]


def test_what_needs_a_failed_cell_is_blocked_once_and_the_rest_runs() -> None:
    a, b = cell("a"), cell("b")
    c, d = cell("c", a), cell("d", b)
    e, f = cell("e", c, d), cell("f", d)
    ran, blocked = drain(Schedule([a, b, c, d, e, f]), lambda name: name == "a")
    assert sorted(ran) == ["a", "b", "d", "f"]
    assert blocked == ["c", "e"]


def test_a_cell_left_out_blocks_what_needs_it() -> None:
    a = cell("a")
    b, other = cell("b", a), cell("other")
    schedule = Schedule([a, b, other])
    schedule.drop(a)
    assert [(each.hash, cause.hash) for each, cause in schedule.take_blocked()] == [("b", "a")]
    assert drain(schedule) == (["other"], [])


def test_a_postponed_job_comes_back_and_what_another_did_of_it_is_done() -> None:
    a = cell("a")
    b = cell("b", a)
    schedule = Schedule([a, b])
    job = schedule.next()
    assert job is not None
    schedule.postpone(job)
    assert schedule.next() is None
    assert schedule.waits
    schedule.resume()
    again = schedule.next()
    assert again is not None
    schedule.shrink(again, Job(()))
    assert names(schedule.next()) == ["b"]


@given(st.data())
def test_any_graph_runs_whole_and_in_order(data: st.DataObject) -> None:
    cells: list[Any] = []
    for index in range(data.draw(st.integers(1, 12))):
        chosen = data.draw(st.sets(st.integers(0, index - 1), max_size=3)) if index else set()
        cells.append(cell(f"n{index}", *(cells[i] for i in sorted(chosen))))
    bad = data.draw(st.sets(st.sampled_from([each.hash for each in cells]), max_size=2))
    ran, blocked = drain(Schedule(cells), lambda name: name in bad)
    assert len(ran) == len(set(ran))
    by_name = {each.hash: each for each in cells}
    for position, name in enumerate(ran):
        assert all(need.hash in ran[:position] and need.hash not in bad for need in by_name[name].needs)
    assert sorted(ran + blocked) == sorted(by_name)


# --- memory ------------------------------------------------------------------------------------


def started(admission: Admission, schedule: Schedule) -> Job | None:
    job = schedule.next(admission.admits, admission.key)
    if job is not None:
        admission.started(job)
    return job


def test_jobs_start_as_long_as_what_they_need_fits(monkeypatch: Any) -> None:
    monkeypatch.setattr("flr_bench.runner.costs.machine_of", lambda each: each.machine)
    costs = Costs([(("fit", "large"), 2.0, 6), (("fit", "large"), 2.0, 5), (("fit", "small"), 1.0, 3)])
    cells = [cell("large", cost="large"), cell("large too", cost="large"), cell("small", cost="small")]
    admission, schedule = Admission(costs, 10), Schedule(cells, costs.seconds)
    first = started(admission, schedule)
    assert names(first) == ["large"]
    assert names(started(admission, schedule)) == ["small"], "6 + 6 exceed 10, 6 + 3 do not"
    assert started(admission, schedule) is None
    assert first is not None
    admission.ended(first)
    assert names(started(admission, schedule)) == ["large too"]


def test_a_job_alone_is_admitted_however_large(monkeypatch: Any) -> None:
    monkeypatch.setattr("flr_bench.runner.costs.machine_of", lambda each: each.machine)
    costs = Costs()
    assert costs.peak(cell("a")) == UNKNOWN_BYTES
    costs.learn(("fit", "other"), 1.0, 5 << 30)
    assert costs.peak(cell("a")) == 5 << 30, "the largest of its kind, as long as it is unknown itself"
    admission, schedule = Admission(costs, 1), Schedule([cell("a"), cell("b")])
    assert names(started(admission, schedule)) == ["a"]
    assert started(admission, schedule) is None
