"""``flr-bench doctor``: what is installed, what the machine offers, and the command that mends what is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from packaging.requirements import Requirement

RECBOLE = "recbole==1.2.1"
RECBOLE_NEEDS = {
    "colorama": "colorama",
    "colorlog": "colorlog",
    "sklearn": "scikit-learn",
    "tensorboard": "tensorboard",
    "texttable": "texttable",
    "tqdm": "tqdm",
}
"""Module → package that RecBole's sequential models import besides torch, numpy, scipy and pandas.

RecBole's own pins (ray up to 2.6.3) cannot be installed from Python 3.12 on; its models need no ray.
"""
GIBIBYTE = 2.0**30
MEMORY_GIB, DISK_GIB = 4.0, 2.0
FOLDERS = {"FLR_BENCH_RUNS": "runs", "FLR_BENCH_CACHE": "cache", "FLR_BENCH_MLRUNS": "mlruns"} | {
    "FLR_BENCH_RESULTS": "results"
}

State = Literal["ok", "note", "bad"]
Pip = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class Check:
    """One line of the diagnosis.

    Attributes:
        name: what was looked at.
        state: ``ok``; ``note`` for what may hamper; ``bad`` for what keeps something from working.
        found: what was seen.
        remedy: the command that mends it, or what to do.
    """

    name: str
    state: State
    found: str
    remedy: str = ""

    def line(self) -> str:
        """The check as one line, with the remedy after an arrow."""
        mark = {"ok": "ok  ", "note": "note", "bad": "BAD "}[self.state]
        return f"{mark}  {self.name:<22} {self.found}" + (f"  ->  {self.remedy}" if self.remedy else "")


def diagnose(fix: bool, *, pip: Pip | None = None, write: Callable[[str], object] | None = None) -> int:
    """Check the installation and the machine, and say what to do about each fault.

    Args:
        fix: install RecBole without its dependencies, and the few packages that its models import,
            as far as they are missing.
        pip: runs pip with arguments and returns its exit status; replaced in tests.
        write: receives the lines; stdout by default.

    Returns:
        0 if everything works, 1 if something is bad.
    """
    say = write or sys.stdout.write
    if fix:
        mend_recbole(pip or run_pip, say)
    checks = list(all_checks())
    for check in checks:
        say(check.line() + "\n")
    bad = sum(check.state == "bad" for check in checks)
    say("all is well\n" if not bad else f"{bad} of {len(checks)} checks are bad; the arrows say how to mend them\n")
    return 1 if bad else 0


def all_checks() -> Iterator[Check]:
    """All checks, in the order of the report."""
    yield check_python()
    yield from (check_package(requirement) for requirement in requirements())
    yield check_recbole()
    yield check_device()
    yield check_energy()
    yield check_memory(memory_bytes())
    yield check_disk(Path.cwd())
    yield from (check_folder(Path(os.environ.get(variable, name)), name) for variable, name in FOLDERS.items())


# ---------------------------------------------------------------- packages
def requirements() -> list[Requirement]:
    """What flr-bench declares for this Python, without extras; RecBole has a check of its own."""
    from packaging.requirements import Requirement

    kept = []
    for line in _declared():
        requirement = Requirement(line)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and requirement.name != "recbole":
            kept.append(requirement)
    return kept


def _declared() -> list[str]:
    """From the installed package, or from ``pyproject.toml`` where it runs out of its sources."""
    try:
        return metadata.requires("flr-bench") or []
    except metadata.PackageNotFoundError:
        import tomllib

        project = Path(__file__).resolve().parents[1] / "pyproject.toml"
        if not project.is_file():
            return []
        return list(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["dependencies"])


def check_python() -> Check:
    """The running Python; one that is too old cannot import this module."""
    return Check("Python", "ok", f"{sys.version.split()[0]} at {sys.executable}")


def check_package(requirement: Requirement) -> Check:
    """Whether a package is there, in a version within the tested bounds."""
    name, bounds = requirement.name, str(requirement.specifier)
    install = f"{_pip_words()} install '{name}{bounds}'"
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "bad", f"not installed (needs {bounds or 'any version'})", install)
    if not requirement.specifier.contains(found, prereleases=True):
        return Check(name, "bad", f"{found} is outside the tested {bounds}", install)
    return Check(name, "ok", f"{found} ({bounds})" if bounds else found)


def check_recbole() -> Check:
    """RecBole and what its models import, found without importing any of it."""
    absent = missing_for_recbole()
    if absent:
        return Check(
            "recbole", "bad", f"missing: {', '.join(absent)}; its methods and ML-100K are out", "flr-bench doctor --fix"
        )
    found, _, wanted = metadata.version("recbole"), *RECBOLE.partition("==")[1:]
    if found != wanted:
        return Check("recbole", "note", f"{found}; tested is {wanted}", f"{_pip_words()} install --no-deps {RECBOLE}")
    return Check("recbole", "ok", found)


def missing_for_recbole() -> list[str]:
    """Packages that RecBole's models need and that are not installed, ``recbole`` itself included."""
    wanted = {"recbole": "recbole", **RECBOLE_NEEDS}
    return [package for module, package in wanted.items() if importlib.util.find_spec(module) is None]


def mend_recbole(pip: Pip, say: Callable[[str], object]) -> None:
    """Install what is missing for RecBole: itself without dependencies, the rest in the ordinary way."""
    absent = missing_for_recbole()
    steps: list[list[str]] = []
    if "recbole" in absent:
        steps.append(["install", "--no-deps", RECBOLE])
    others = [name for name in absent if name != "recbole"]
    if others:
        steps.append(["install", *others])
    for step in steps:
        say(f"{_pip_words()} {' '.join(step)}\n")
        status = pip(step)
        if status != 0:
            say(f"pip ended with status {status}; its own message above says why\n")
    importlib.invalidate_caches()


def run_pip(arguments: Sequence[str]) -> int:
    """Run pip of this Python; returns its exit status."""
    return subprocess.run([sys.executable, "-m", "pip", *arguments], check=False).returncode  # noqa: S603 - own arguments


def _pip_words() -> str:
    return f"{Path(sys.executable).name} -m pip"


# ---------------------------------------------------------------- machine
def check_device() -> Check:
    """Which device torch would train on, and how many threads it has."""
    if importlib.util.find_spec("torch") is None:
        return Check("device", "bad", "torch is not installed", f"{_pip_words()} install torch")
    import torch

    threads = f"{os.cpu_count()} CPU(s), torch uses {torch.get_num_threads()} thread(s)"
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        return Check("device", "ok", f"cuda: {names}; {threads}")
    return Check("device", "ok", f"cpu (no CUDA device; the cpu profiles need none); {threads}")


def check_energy(powercap: Path = Path("/sys/class/powercap")) -> Check:
    """Whether the hardware's counters of energy can be read; without them cells have no figure of it."""
    zones = sorted(powercap.glob("intel-rapl:*/energy_uj"))
    if not zones:
        return Check("energy", "ok", f"not measured: no counter under {powercap} (usual in virtual machines)")
    try:
        for zone in zones:
            zone.read_text(encoding="ascii")
    except OSError as error:
        remedy = f"sudo chmod a+r {powercap}/intel-rapl:*/energy_uj (until the next start of the machine)"
        return Check("energy", "note", f"not measured: {error.strerror or error} for {error.filename}", remedy)
    return Check("energy", "ok", "measured by RAPL, for the whole processor and all that runs on it")


def memory_bytes() -> float | None:
    """Physical memory, or the control group's limit where that is lower; ``None`` if unknown."""
    try:
        total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (ValueError, OSError, AttributeError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return total
    return min(total, float(limit)) if limit.isdigit() else total


def check_memory(total: float | None) -> Check:
    """Whether the main suite's cpu profile fits."""
    if total is None:
        return Check("memory", "note", "unknown", f"the main suite needs {MEMORY_GIB:g} GiB")
    found = f"{total / GIBIBYTE:.1f} GiB"
    if total < MEMORY_GIB * GIBIBYTE:
        return Check("memory", "note", found, f"the main suite needs {MEMORY_GIB:g} GiB: use --workers 1")
    return Check("memory", "ok", found)


def check_disk(folder: Path) -> Check:
    """Free space where the output folders are by default."""
    free = shutil.disk_usage(folder).free
    found = f"{free / GIBIBYTE:.1f} GiB free"
    if free < DISK_GIB * GIBIBYTE:
        advice = f"a suite may need {DISK_GIB:g} GiB: free some, or name another disk with --runs and --cache"
        return Check("disk", "bad", found, advice)
    return Check("disk", "ok", found)


def check_folder(folder: Path, option: str) -> Check:
    """Whether an output folder can be written, or made."""
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        return Check(f"{option} folder", "bad", f"{folder}: {reason}", f"name another with --{option}")
    return Check(f"{option} folder", "ok", f"{folder} can be written")
