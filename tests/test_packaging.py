"""What is built of the package, and what is installed of it; without the network."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import keras
import pytest
from packaging.requirements import Requirement

import keras_visattn

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "keras_visattn"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(PACKAGE.rglob("*.py"))]

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "torch", reason="a wheel is the same under every backend"
)


def run(*command, **arguments):
    found = subprocess.run(command, capture_output=True, text=True, **arguments)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with the sdist, and with the wheel that was built from it alone."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT))
    return folder


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    (wheel,) = built.glob("*.whl")
    pip = sys.executable, "-m", "pip", "--disable-pip-version-check"
    run(*pip, "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


def test_the_wheel_holds_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"keras_visattn-{keras_visattn.__version__}-py3-none-any.whl"
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    files = [*PACKAGE.rglob("*.py"), PACKAGE / "py.typed"]
    assert names == {str(path.relative_to(ROOT)) for path in files}


def test_the_sdist_holds_what_is_built_and_tested(built):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    folders = {name.partition("/")[0] for name in names}
    assert folders == {
        *("keras_visattn", "tests", "examples", "docs"),
        *("README.md", "LICENSE", "PKG-INFO", "pyproject.toml", "mkdocs.yml", ".gitignore"),
    }
    assert {str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("*.*")} <= names
    assert not any(name.endswith(".pyc") for name in names)


def test_every_extra_that_is_named_exists_and_can_be_read(installed):
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    extras = set(found.metadata.get_all("Provides-Extra"))
    requirements = [Requirement(text) for text in found.requires]
    for extra in extras:
        own = [r for r in requirements if r.marker and r.marker.evaluate({"extra": extra})]
        assert own, extra
    named = {}
    for page in PAGES:
        for names in re.findall(r"(?:keras_visattn|[\"' ]\.)\[([a-z,]+)\]", page.read_text()):
            named |= dict.fromkeys(names.split(","), page)
    assert {"jax", "dev", "visualize", "weights"} <= named.keys() <= extras, named


def test_the_installed_package_runs_and_is_typed(installed, tmp_path):
    code = "import keras_visattn, runpy; print(keras_visattn.__path__[0]); "
    code += "runpy.run_module('keras_visattn', run_name='__main__')"  # as `python -m` does
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    place, text = run(
        *(sys.executable, "-W", "ignore", "-c", code), env=environment, cwd=tmp_path
    ).split("\n", 1)
    assert Path(place) == installed / "keras_visattn"
    assert f"keras_visattn {keras_visattn.__version__}" in text
    assert "backend: torch, devices: " in text
    assert (installed / "keras_visattn" / "py.typed").is_file()
