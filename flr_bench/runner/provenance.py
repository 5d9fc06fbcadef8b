"""Which code runs, on what: versions, commit, platform."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import flr_bench
from flr_bench.runner.hardware import processor

PACKAGES = ("torch", "transformers", "recbole", "numpy", "pandas", "pyarrow", "peft", "safetensors", "pydantic")


def environment() -> dict[str, Any]:
    """Content of ``environment.json``: commit, versions, platform. Imports none of the packages."""
    commit, dirty = _commit()
    return {
        "commit": commit,
        "dirty": dirty,
        "flr_bench": flr_bench.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor(),
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool]:
    """The git commit of the running code and whether tracked files differ from it; none if installed."""
    folder = Path(flr_bench.__file__).parent
    if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, False
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", str(folder))
    return _git(folder, "rev-parse", "HEAD"), bool(changes)


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)  # noqa: S603 - no shell, fixed words
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
