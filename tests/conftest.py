"""What a machine must have for a marked test, and what all tests share.

A marked test is skipped, with a reason, where its requirement is not met.  ``FLR_BENCH_REQUIRE``
names requirements (separated by commas) that must be met: for these a skip is a failure.  ``core``
stands for what every machine has, so that a test without a marker may not be skipped either.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
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

START = time.monotonic()
UNTIMELY: list[str] = []
"""Tests whose turn came after the deadline; they are no failures."""

REQUIRE = frozenset(filter(None, os.environ.get("FLR_BENCH_REQUIRE", "").replace(" ", "").split(",")))


def _program(*names: str) -> bool:
    return any(shutil.which(name) for name in names)


def _postgres() -> bool:
    return _program("initdb") or any(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


def _siunitx() -> bool:
    return _program("kpsewhich") and not subprocess.run(["kpsewhich", "siunitx.sty"], capture_output=True).returncode


def _mount() -> bool:
    """Whether a file system of some kilobytes can be had, to fill it."""
    if os.geteuid() != 0 or not _program("mount"):
        return False
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", folder], capture_output=True)
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
    return done.returncode == 0


def _axe() -> bool:
    file = os.environ.get("FLR_BENCH_AXE")
    return Path(file).is_file() if file else _program("npm")


def _extra_data() -> bool:
    folder = os.environ.get("FLR_BENCH_EXTRA_DATA")
    return bool(folder) and Path(folder).is_dir()


REQUIREMENTS: dict[str, tuple[Callable[[], bool], str]] = {
    "core": (lambda: True, ""),
    "browser": (lambda: _program("chromium", "chromium-browser", "google-chrome"), "Chromium is not installed"),
    "axe": (_axe, "npm is not installed, which fetches axe-core, and FLR_BENCH_AXE names no axe.min.js"),
    "tex": (lambda: _program("pdflatex"), "pdflatex is not installed"),
    "siunitx": (_siunitx, "siunitx is not installed"),
    "mount": (_mount, "no tmpfs can be mounted"),
    "postgres": (_postgres, "PostgreSQL is not installed"),
    "extra_data": (_extra_data, "FLR_BENCH_EXTRA_DATA names no folder"),
    "slow": (lambda: "slow" in REQUIRE, "takes minutes; FLR_BENCH_REQUIRE=slow runs it"),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--deadline", type=float, metavar="SECONDS", help="no test begins later than so long after the start"
    )


def pytest_configure() -> None:
    unknown = REQUIRE - REQUIREMENTS.keys()
    if unknown:
        raise pytest.UsageError(
            f"FLR_BENCH_REQUIRE names {', '.join(sorted(unknown))}; known: {', '.join(sorted(REQUIREMENTS))}"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = {mark.name for item in items for mark in item.iter_markers()}
    missing = {name: reason for name, (met, reason) in REQUIREMENTS.items() if name in wanted and not met()}
    chosen = config.option.markexpr
    for item in items:
        for name in missing.keys() & {mark.name for mark in item.iter_markers()}:
            if name == "slow" and "slow" in chosen:
                continue
            item.add_marker(pytest.mark.skip(reason=f"{name}: {missing[name]}"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    seconds = item.config.getoption("--deadline")
    if seconds is not None and time.monotonic() - START > seconds:
        UNTIMELY.append(item.nodeid)
        pytest.skip(f"not run: {seconds:.0f} s were over")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if UNTIMELY:
        terminalreporter.section("not run for want of time")
        for name in UNTIMELY:
            terminalreporter.line(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    needs = (REQUIREMENTS.keys() & {mark.name for mark in item.iter_markers()}) or {"core"}
    if report.skipped and item.nodeid not in UNTIMELY and not hasattr(report, "wasxfail") and needs <= REQUIRE:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"FLR_BENCH_REQUIRE={','.join(sorted(REQUIRE))} forbids this skip: {reason}"
    return report
