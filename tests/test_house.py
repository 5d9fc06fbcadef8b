"""The project as a whole: what the wheel holds, what the README promises, what must not be in it."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.tools import load_tool

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("flr_bench", "baselines", "experiments")
HEAVY = (
    "torch",
    "transformers",
    "recbole",
    "mlflow",
    "pandas",
    "pyarrow",
    "scipy",
    "matplotlib",
    "seaborn",
    "peft",
    "distributed",
)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project() -> dict[str, object]:
    return tomllib.loads(read("pyproject.toml"))["project"]


def project_files() -> list[Path]:
    """What is, or is about to be, under version control; in an unpacked archive everything but environments."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        tops = [path for path in ROOT.iterdir() if path.name not in {".venv", ".tox", "runs", "cache", "mlruns"}]
        return [path for top in tops for path in (top.rglob("*") if top.is_dir() else [top]) if path.is_file()]
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def environment(**changes: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("FLR_BENCH_", "PYTEST_"))}
    return {**kept, **changes}


# --- the wheel ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the checkout stays as it is."""
    source = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    out = tmp_path_factory.mktemp("dist")
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", str(out), str(source)], check=True, env=environment())
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel is installed, to be put before this checkout on the path."""
    target = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target)]
    subprocess.run([*pip, str(wheel)], check=True, env=environment())
    return target


def test_wheel_holds_packages_suites_and_licence(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.suffix in {".py", ".yaml", ".json", ".typed", ".html", ".css", ".js"}:
                assert path.relative_to(ROOT).as_posix() in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.split("/")[0] in {"tests", "results", "tools", "examples"}]


@pytest.mark.parametrize(("suite", "row"), [("smoke", "sasrec"), ("main", "sasrec"), ("ablations", "full · sft")])
def test_installed_wheel_plans_its_suites_in_an_empty_folder(site: Path, suite: str, row: str, tmp_path: Path) -> None:
    cwd = tmp_path / "empty"
    cwd.mkdir()
    env = environment(PYTHONPATH=str(site), FLR_BENCH_CACHE=str(tmp_path / "cache"))
    where = [sys.executable, "-c", "import baselines, flr_bench.cli as c; print(baselines.__file__, c.__file__)"]
    found = subprocess.run(where, cwd=cwd, env=env, capture_output=True, text=True, check=True).stdout
    assert found.split() == [str(site / "baselines/__init__.py"), str(site / "flr_bench/cli.py")]
    command = [str(site / "bin" / "flr-bench"), "plan", "--suite", suite]
    planned = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert planned.returncode == 0, planned.stderr
    assert f"fit {row}" in planned.stdout


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom flr_bench.cli import main\nsys.argv = ['flr-bench', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"loaded = sorted(set(sys.modules) & set({HEAVY!r}))\nassert not loaded, loaded\n"
    )
    env = environment(PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout
    assert not list(tmp_path.iterdir())


# --- dependencies ------------------------------------------------------------------------------


def requirements() -> list[Requirement]:
    described = project()
    listed = [*described["dependencies"], *described["optional-dependencies"]["dev"]]  # type: ignore[index,misc]
    return [Requirement(line) for line in listed]


def pins() -> dict[str, Version]:
    lines = [line for line in read("constraints.txt").splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


def test_constraints_pin_every_dependency_within_its_bounds() -> None:
    pinned = pins()
    for requirement in requirements():
        assert requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]), requirement


def test_doctor_mends_what_pip_cannot_install_from_python_3_12_on() -> None:
    from flr_bench.doctor import RECBOLE, RECBOLE_NEEDS

    conditional = [requirement for requirement in requirements() if requirement.marker is not None]
    (recbole,) = [requirement for requirement in conditional if requirement.name == "recbole"]
    assert f"{recbole.name}{recbole.specifier}" == RECBOLE
    assert {requirement.name for requirement in conditional} - {"recbole"} == set(RECBOLE_NEEDS.values())


def test_tox_is_not_constrained_since_recbole_holds_colorama_back() -> None:
    assert "tox" not in pins()
    assert pins()["colorama"] == Version("0.4.4")


def test_every_imported_package_is_a_declared_dependency() -> None:
    described = project()
    lines = [*described["dependencies"], *described["optional-dependencies"]["dask"]]  # type: ignore[index,misc]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    as_imported = {"yaml": "pyyaml"}
    own = {*PACKAGES, *sys.stdlib_module_names}
    undeclared = set()
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for module in imported(path) - own:
                if canonicalize_name(as_imported.get(module, module)) not in declared:
                    undeclared.add(f"{path.relative_to(ROOT)}: {module}")
    # The conformance tests are shipped for people who run pytest anyway, the script for Slurm for who has that.
    allowed = r"flr_bench/testing/.*: (pytest|hypothesis)|experiments/clusters/slurm.py: dask_jobqueue"
    assert {entry for entry in undeclared if not re.fullmatch(allowed, entry)} == set()


def imported(path: Path) -> set[str]:
    """Top-level names of all absolute imports of a file."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize(
    ("package", "only"),
    [
        ("mlflow", "flr_bench/tracking/"),
        ("recbole", "baselines/recbole_models.py"),
        ("distributed", "flr_bench/runner/dask_executor.py"),
    ],
)
def test_one_place_imports_what_one_place_may_import(package: str, only: str) -> None:
    """Also by name, which import-linter does not see."""
    users = set()
    for path in (path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py")):
        named = {text.partition(".")[0] for text in imported_by_name(path)}
        if package in imported(path) | named:
            users.add(path.relative_to(ROOT).as_posix())
    assert not [user for user in users if not user.startswith(only)]


@pytest.mark.parametrize("package", ["data", "runner", "tracking"])
def test_a_package_of_many_modules_lists_each_once(package: str) -> None:
    folder = ROOT / "flr_bench" / package
    listed = re.findall(r"``(\w+)``", ast.get_docstring(ast.parse(read(f"flr_bench/{package}/__init__.py"))) or "")
    found = {path.stem for path in folder.iterdir() if not path.name.startswith("_") and path.suffix in ("", ".py")}
    assert sorted(listed) == sorted(found)


def imported_by_name(path: Path) -> list[str]:
    """First pieces of text given to ``import_module`` or ``__import__``."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in {"import_module", "__import__"}:
                texts = [part.value for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant)]
                found += [str(text) for text in texts[:1]]
    return found


# --- README and checks -------------------------------------------------------------------------


def commands() -> list[str]:
    return re.findall(r"^```sh\n(.*?)\n```$", read("README.md"), flags=re.MULTILINE | re.DOTALL)


def test_readme_has_two_self_contained_command_lines() -> None:
    lines = commands()
    assert len(lines) == 2
    assert read("README.md").count("```") == 4
    for line in lines:
        assert "\n" not in line
        steps = line.split(" && ")
        assert steps[:2] == ["python3 -m venv .venv", ".venv/bin/pip install torch==2.13.0"]
        assert steps[2].startswith(".venv/bin/pip install -c constraints.txt -e ")
    assert lines[0].endswith(".venv/bin/flr-bench run --suite main")
    assert lines[1].endswith(".venv/bin/python -m pytest -n 2")
    assert str(pins()["torch"]) == "2.13.0"


def test_ci_runs_the_second_command_line() -> None:
    assert f"\n  {commands()[1]}\n" in read(".ci/run")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_readme_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", read("README.md"))
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_readme_is_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "tools" / "update_readme.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment())
    assert done.returncode == 0, done.stderr


def publish(root: Path, suite: str, data: str, *rows: str, **more: str) -> Path:
    """Write what the README's tool reads of a published suite; a row labelled ``control`` is one."""
    folder = root / "results" / suite / "cpu"
    folder.mkdir(parents=True)
    labels = [row.partition(",")[0] for row in rows]
    described = [{"label": label, "control": "noise" if label == "control" else None} for label in labels]
    manifest = {"suite": f"{suite}@1", "order": [data], "seeds": [0, 1], "rows": described, **more}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "main.csv").write_text("\n".join(["data,method,ndcg@10,ndcg@10_sd", *(f"{data},{row}" for row in rows)]))
    return folder


def test_readme_tool_fills_parts_and_names_missing_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = load_tool("update_readme")
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    empty = "\n".join(f"<!-- {name}:begin --><!-- {name}:end -->" for name in tool.PARTS)
    assert "<!-- results:begin -->\n<!-- results:end -->" in tool.render(empty)
    published = publish(tmp_path, "main", "ml-100k", "popularity,0.02,", "flr · sft · d3,0.0811,0.003", "control,0.9,")
    publish(tmp_path, "main-cds", "cds", "popularity,0.0219,", variant_of="main")
    publish(tmp_path, "ablations", "ml-100k", "flr · sft · d3,0.5,")
    (published / "figures").mkdir()
    (published / "figures" / "quality.png").touch()
    filled = tool.render(empty)
    table = """\
| Method | ml-100k | cds |
|---|---:|---:|
| popularity | 0.0200 | **0.0219** |
| flr · sft · d3 | **0.0811 ± 0.0030** |  |
"""
    assert table in filled
    assert "(2 seeds on ml-100k, 2 seeds on cds)" in filled
    assert "[cds](results/main-cds/cpu/main.md)" in filled
    assert "(results/main/cpu/figures/quality.png)" in filled
    assert tool.render(filled) == filled
    with pytest.raises(ValueError, match="results:begin"):
        tool.render("nothing")
    columns = "model,beams,k,missed,missed_sd,ndcg_difference,ndcg_difference_low,ndcg_difference_high\n"
    (published / "search.csv").write_text(
        f"{columns}flr · sft+rl,5,5,1.3,,,,\nflr · sft+rl,10,10,1.935,0.04,-0.003,-0.006,0.0002\n"
    )
    filled = tool.render(empty)
    assert "10 beams, the published number, miss 1.94 ± 0.04 items of the true top 10 of `flr · sft+rl`" in filled
    assert "NDCG@10 by -0.0030 (95 % interval -0.0060 to +0.0002)" in filled
    (published / "search.csv").write_text(f"{columns}flr · sft+rl,5,5,1.3,,,,\n")
    assert "published number" not in tool.render(empty)


def test_one_version_everywhere() -> None:
    import flr_bench

    version = project()["version"]
    assert flr_bench.__version__ == version
    assert yaml.safe_load(read("CITATION.cff"))["version"] == version
    assert re.search(r"^## (\S+)", read("CHANGELOG.md"), flags=re.MULTILINE).group(1) == version  # type: ignore[union-attr]


def test_tox_has_the_environments_and_the_small_ones_do_not_install_the_project() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read_string(read("tox.ini"))
    for name in ("lint", "types", "imports", "bench", "slow"):
        assert tox.has_section(f"testenv:{name}")
    for name in ("lint", "imports"):
        assert tox[f"testenv:{name}"]["skip_install"] == "true"


def test_pre_commit_hooks_are_local() -> None:
    assert [repo["repo"] for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]] == ["local"]


# --- what must not be in the project -----------------------------------------------------------

# Written in pieces so that this file does not contain what it forbids.
HOSTS = ("pypi" + r"\.org", "python" + "hosted", "npm" + r"js\.", r"deb\." + "debian", r"download\." + "pytorch")
FOLDERS = ("/wo" + "rk/", "/op" + "t/", "/ro" + "ot/", "/ho" + r"me/\w", "/fa" + "rm/")
FORBIDDEN = re.compile("|".join(HOSTS + FOLDERS))


def test_no_file_names_a_registry_host_or_a_path_of_one_machine() -> None:
    found = []
    for path in project_files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in FORBIDDEN.finditer(text)]
    assert found == []


def test_no_large_file() -> None:
    assert [str(path) for path in project_files() if path.stat().st_size > 1 << 20] == []


def test_no_rule_is_off_for_the_whole_project() -> None:
    lint = tomllib.loads(read("pyproject.toml"))["tool"]["ruff"]["lint"]
    assert not lint.get("ignore")
    assert {"C90", "ARG", "BLE", "D", "PLR0913", "PLR0915"} <= set(lint["select"])


# --- markers -----------------------------------------------------------------------------------


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    """A folder with the shared conftest, a test that needs Chromium and one that just skips."""
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    markers = "\n".join(f"    {name}: x" for name in ("slow", "browser", "tex", "postgres", "extra_data"))
    (tmp_path / "pytest.ini").write_text(f"[pytest]\nmarkers =\n{markers}\n")
    (tmp_path / "test_marked.py").write_text(
        "import pytest\n\n@pytest.mark.extra_data\ndef test_extra(): pass\n\n"
        "@pytest.mark.slow\ndef test_slow(): pass\n\n"
        "def test_plain(): pytest.skip('no reason')\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("required", "extra", "summary"),
    [
        (None, False, "3 skipped"),
        (None, True, "1 passed, 2 skipped"),
        ("slow", False, "1 passed, 2 skipped"),
        ("extra_data", False, "2 skipped, 1 error"),
        ("core", True, "1 failed, 1 passed, 1 skipped"),
        ("core, slow,extra_data", True, "1 failed, 2 passed"),
    ],
)
def test_require_makes_a_skip_a_failure(marked: Path, required: str | None, extra: bool, summary: str) -> None:
    chosen = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if required is not None:
        chosen["FLR_BENCH_REQUIRE"] = required
    if extra:
        chosen["FLR_BENCH_EXTRA_DATA"] = str(marked)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=marked, env=environment(**chosen), capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1].startswith(summary), done.stdout
    assert required is not None or "FLR_BENCH_REQUIRE=slow runs it" in done.stdout


def test_tests_after_the_deadline_are_listed_and_not_failed(marked: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "slow", "--deadline"]
    env = environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", FLR_BENCH_REQUIRE="core,slow")
    summaries = []
    for seconds in ("0", "1000"):
        done = subprocess.run([*command, seconds], cwd=marked, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
        summaries.append(done.stdout)
    assert "not run for want of time" in summaries[0]
    assert "test_marked.py::test_slow" in summaries[0]
    assert "1 skipped" in summaries[0]
    assert "not run" not in summaries[1]
    assert "1 passed" in summaries[1]


def test_unknown_requirement_is_named(marked: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q"]
    env = environment(FLR_BENCH_REQUIRE="bowser", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    done = subprocess.run(command, cwd=marked, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "FLR_BENCH_REQUIRE names bowser; known: axe, browser" in done.stderr
