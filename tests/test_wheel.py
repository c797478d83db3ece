"""The wheel, installed from its file into a new environment: what is read by path is in it, and the demo runs in an empty folder.

The environment has its own copy of this project and, by a .pth file, the other packages of the environment that runs the tests.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "trainer", "flows")
NOT_PACKAGED = shutil.ignore_patterns("__pycache__", "*.egg-info")


def run(*words: str | Path, cwd: Path, code: int = 0) -> str:
    """Standard output of a command of which nothing but files tells where the checkout is."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PYTHON"))}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env={**environment, "PREFECT_HOME": str(cwd.parent / "prefect")},
        check=False, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools leaves folders in the tree."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in (*PACKAGES, "manifests/recipes", "manifests/sources", "manifests/slurm"):
        shutil.copytree(PROJECT / name, source / name, symlinks=True, ignore=NOT_PACKAGED)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(PROJECT / name, source / name)
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation")
    run(*pip, "--wheel-dir", folder, source, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def bin_folder(wheel: Path) -> Path:
    """``bin`` of a new environment with the wheel installed."""
    environment = wheel.parent / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=wheel.parent)
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=wheel.parent)
    purelib = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])", cwd=wheel.parent).strip()
    )
    (purelib / "installed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return environment / "bin"


@pytest.fixture(scope="module")
def empty(wheel: Path) -> Path:
    folder = wheel.parent / "empty"
    folder.mkdir()
    return folder


def test_every_file_of_the_packages_is_in_the_wheel(wheel: Path) -> None:
    files = {
        (Path(folder) / name).relative_to(PROJECT).as_posix()
        for package in PACKAGES
        for folder, _, names in os.walk(PROJECT / package, followlinks=True)
        for name in names
        if not folder.endswith("__pycache__")
    }
    with zipfile.ZipFile(wheel) as packed:
        assert {name for name in packed.namelist() if ".dist-info/" not in name} == files
        licences = {name.partition("/licenses/")[2] for name in packed.namelist() if "/licenses/" in name}
        recipe = packed.read("pipeline/starter/recipes/landscape.toml")
    assert {"LICENSE", "NOTICE", "pipeline/report/assets/vendor/LICENSE"} <= licences
    assert recipe == (PROJECT / "manifests" / "recipes" / "landscape.toml").read_bytes()


def test_what_is_imported_comes_from_the_wheel(bin_folder: Path, empty: Path) -> None:
    program = f"import {', '.join(PACKAGES)}; print({', '.join(f'{name}.__file__' for name in PACKAGES)}, sep='\\n')"
    places = run(bin_folder / "python", "-c", program, cwd=empty).splitlines()
    assert len(places) == 3
    assert all(Path(place).is_relative_to(bin_folder.parent) for place in places)


def test_its_requirements_are_those_of_this_environment(bin_folder: Path, empty: Path) -> None:
    out = run(sys.executable, "-m", "pip", "--python", bin_folder / "python", "check", cwd=empty)
    assert out == "No broken requirements found.\n"


def test_the_command_in_an_empty_folder(bin_folder: Path, empty: Path) -> None:
    hearscape = bin_folder / "hearscape"
    assert run(hearscape, "--version", cwd=empty).startswith("hearscape 0.")
    assert "write recipes" in run(hearscape, "--help", cwd=empty)
    run(hearscape, "new", "mine", cwd=empty)
    planned = run(hearscape, "build", "mine/manifests/recipes/landscape.toml", "--dry-run", cwd=empty)
    assert planned.splitlines()[-1].startswith("landscape: 4 sources")
    run(
        hearscape,
        "fit",
        "--recipe",
        "mine/manifests/recipes/fit-prior-tiny.toml",
        "--shards",
        "manifests/",
        cwd=empty,
        code=2,
    )


def test_the_demo_in_an_empty_folder(bin_folder: Path, empty: Path) -> None:
    """Two samples that are kept and a file that is no video: painted, served, downloaded, measured, embedded, cut, packed, reported."""
    hearscape = bin_folder / "hearscape"
    out = run(hearscape, "demo", "--no-fit", "--only", "fire_hearth", "ocean_letterboxed", "text", cwd=empty)
    assert re.search("^sources +3  2 kept, 0 rejected, 1 failed$", out, re.MULTILINE), out
    for made in (
        "manifests/demo/report.html",
        "manifests/demo/embeddings.parquet",
        "manifests/demo-sources/sources.csv",
    ):
        assert (empty / made).is_file()
    assert "echarts" in (empty / "manifests/demo/report.html").read_text()
    assert "all is as the manifest says" in run(hearscape, "verify", "manifests/demo", cwd=empty)
