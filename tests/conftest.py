"""What a machine must have for a marked test, and what all tests share.

A marked test is skipped, with a reason, where its requirement is not met.  ``FLR_BENCH_REQUIRE``
names requirements (separated by commas) that must be met: for these a skip is a failure.  ``core``
stands for what every machine has, so that a test without a marker may not be skipped either.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

# Before torch is imported anywhere: cells run on one thread in the cpu profile, and so do tests.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ["MPLBACKEND"] = "Agg"
# A shell's background job ignores interrupts, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# A user's own folders and tracking server are none of the tests' business.
for name in ("FLR_BENCH_RUNS", "FLR_BENCH_CACHE", "FLR_BENCH_MLRUNS", "FLR_BENCH_RESULTS", "MLFLOW_TRACKING_URI"):
    os.environ.pop(name, None)

REQUIRE = frozenset(filter(None, os.environ.get("FLR_BENCH_REQUIRE", "").replace(" ", "").split(",")))


def _program(*names: str) -> bool:
    return any(shutil.which(name) for name in names)


def _postgres() -> bool:
    return _program("initdb") or any(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def _extra_data() -> bool:
    folder = os.environ.get("FLR_BENCH_EXTRA_DATA")
    return bool(folder) and Path(folder).is_dir()


REQUIREMENTS: dict[str, tuple[Callable[[], bool], str]] = {
    "core": (lambda: True, ""),
    "browser": (lambda: _program("chromium", "chromium-browser", "google-chrome"), "Chromium is not installed"),
    "tex": (lambda: _program("pdflatex"), "pdflatex is not installed"),
    "postgres": (_postgres, "PostgreSQL is not installed"),
    "extra_data": (_extra_data, "FLR_BENCH_EXTRA_DATA names no folder"),
    "slow": (lambda: "slow" in REQUIRE, "takes minutes; FLR_BENCH_REQUIRE=slow runs it"),
}


def pytest_configure() -> None:
    unknown = REQUIRE - REQUIREMENTS.keys()
    if unknown:
        raise pytest.UsageError(
            f"FLR_BENCH_REQUIRE names {', '.join(sorted(unknown))}; known: {', '.join(sorted(REQUIREMENTS))}"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    missing = {name: reason for name, (met, reason) in REQUIREMENTS.items() if not met()}
    chosen = config.option.markexpr
    for item in items:
        for name in missing.keys() & {mark.name for mark in item.iter_markers()}:
            if name == "slow" and "slow" in chosen:
                continue
            item.add_marker(pytest.mark.skip(reason=f"{name}: {missing[name]}"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    needs = (REQUIREMENTS.keys() & {mark.name for mark in item.iter_markers()}) or {"core"}
    if report.skipped and not hasattr(report, "wasxfail") and needs <= REQUIRE:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"FLR_BENCH_REQUIRE={','.join(sorted(REQUIRE))} forbids this skip: {reason}"
    return report
