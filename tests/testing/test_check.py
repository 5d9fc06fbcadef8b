"""``check`` finds the methods of a file, a package's folder or an importable name."""

import re
from pathlib import Path

import pytest

from flr_bench.errors import UsageError
from flr_bench.registry import RECOMMENDERS
from flr_bench.testing import check

METHOD = '''
from baselines.popularity import Popularity
from flr_bench.registry import RECOMMENDERS

@RECOMMENDERS.register("{name}")
class Mine(Popularity):
    """Mine."""
'''


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    RECOMMENDERS.names()
    monkeypatch.setattr(RECOMMENDERS, "_entries", dict(RECOMMENDERS._entries))


def test_file(tmp_path):
    (tmp_path / "check_mine.py").write_text(METHOD.format(name="mine"))
    seen = []
    report = check(str(tmp_path / "check_mine.py"), progress=seen.append)
    assert report.methods == ("mine",)
    assert report.ok
    assert tuple(seen) == report.results
    assert re.search(r"1 methods, \d+ checks, 0 failed", list(report.lines())[-1])


def test_file_checked_twice(tmp_path):
    (tmp_path / "check_again.py").write_text(METHOD.format(name="again"))
    assert check(str(tmp_path / "check_again.py")).ok
    assert check(str(tmp_path / "check_again.py")).methods == ("again",)


def test_package_folder_and_failure_lines(tmp_path):
    package = tmp_path / "check_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text(METHOD.format(name="inner").replace('"""Mine."""', 'citation = ""'))
    report = check(str(package))
    assert report.methods == ("inner",)
    assert not report.ok
    assert any(line.startswith("FAIL inner: is described: ") for line in report.lines())


def test_importable_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "check_named.py").write_text(METHOD.format(name="named"))
    assert check("check_named").methods == ("named",)


@pytest.mark.parametrize(
    ("content", "message"),
    [("x = 1", "registers no method"), ("import no_such_package", "cannot be imported: ModuleNotFoundError")],
)
def test_useless_files(tmp_path, content, message):
    path = tmp_path / "check_useless.py"
    path.write_text(content)
    with pytest.raises(UsageError, match=message):
        check(str(path))


def test_neither_file_nor_package(tmp_path):
    with pytest.raises(UsageError, match="is no file and cannot be imported"):
        check("no_such_package_at_all")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(UsageError, match=r"neither a \.py file"):
        check(str(Path(tmp_path / "notes.md")))
