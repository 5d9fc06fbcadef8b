"""A third party's package, installed by pip, is found through its entry point."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "tiny-plugin"
version = "1.0"
[project.entry-points."flr_bench.recommenders"]
tiny = "tiny_plugin"
[tool.setuptools]
py-modules = ["tiny_plugin"]
"""
MODULE = '''
from baselines.popularity import Popularity
from flr_bench.registry import RECOMMENDERS

@RECOMMENDERS.register("tiny")
class Tiny(Popularity):
    """A third party's method."""
'''
ASK = """
from flr_bench.registry import RECOMMENDERS
from flr_bench.testing import check
assert "tiny" in RECOMMENDERS.names() and "popularity" in RECOMMENDERS.names()
print(RECOMMENDERS.origin("tiny"), check("tiny_plugin").ok)
"""


def python(*arguments, path=()):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "pyproject.toml").write_text(PYPROJECT)
    (source / "tiny_plugin.py").write_text(MODULE)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--target", str(target)]
    done = python("-m", "pip", "install", *options, str(source))
    assert done.returncode == 0, done.stderr
    return target


def test_found_and_sound(installed):
    done = python("-c", ASK, path=(installed, ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["tiny_plugin:5", "True"]


def test_absent_without_the_package():
    done = python("-c", "from flr_bench.registry import RECOMMENDERS; RECOMMENDERS.get('tiny')", path=(ROOT,))
    assert "unknown method 'tiny'" in done.stderr


def test_name_that_is_taken(installed, tmp_path):
    (tmp_path / "tiny_plugin.py").write_text(MODULE.replace('"tiny"', '"popularity"'))
    done = python(
        "-c", "from flr_bench.registry import RECOMMENDERS; RECOMMENDERS.names()", path=(tmp_path, installed, ROOT)
    )
    assert "method 'popularity' is registered twice: baselines.popularity:" in done.stderr
    assert "tiny_plugin:5" in done.stderr
