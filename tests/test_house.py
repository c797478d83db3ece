"""Files that other programs read: the Containerfile, the workflow of hosted CI, and the pre-commit hooks."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.conftest import SLOW_PLACES, is_slow
from tests.machines import COMPUTING, Machine, Setting, settings, settings_together

PROJECT = Path(__file__).parents[1]
CONFIG: dict[str, Any] = tomllib.loads((PROJECT / "pyproject.toml").read_text())


def instructions() -> list[tuple[str, str]]:
    """Word and arguments of each instruction of the Containerfile, continued lines joined."""
    text = re.sub(r"^#.*\n", "", (PROJECT / "Containerfile").read_text(), flags=re.MULTILINE)
    lines = [line.strip() for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in lines]


def arguments(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def test_the_containerfile_copies_what_is_there_and_not_ignored() -> None:
    allowed = [line[1:] for line in (PROJECT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [source for rest in arguments("COPY") for source in rest.split()[:-1]]
    assert sorted(copied) == sorted(allowed)
    for source in copied:
        assert (PROJECT / source).exists(), source
    assert {"pipeline", "trainer", "flows"} == {
        each.rstrip("*") for each in CONFIG["tool"]["setuptools"]["packages"]["find"]["include"]
    }


def test_the_links_of_the_packages_stay_inside_what_is_copied() -> None:
    copied = [(PROJECT / source).resolve() for rest in arguments("COPY") for source in rest.split()[:-1]]
    links = [
        path for name in ("pipeline", "trainer", "flows") for path in (PROJECT / name).rglob("*") if path.is_symlink()
    ]
    assert links
    for link in links:
        assert any(link.resolve().is_relative_to(source) for source in copied), link


def test_the_image_has_a_python_that_the_project_supports() -> None:
    version = next(rest.partition("=")[2] for rest in arguments("ARG") if rest.startswith("PYTHON="))
    assert version in SpecifierSet(CONFIG["project"]["requires-python"])
    assert arguments("FROM") == ["python:${PYTHON}-slim"]


def test_the_image_installs_the_pinned_dependencies(tmp_path: Path) -> None:
    """The line that lists them is run; each of them has its version in constraints.txt."""
    first, second, _ = arguments("RUN")
    script = first.partition(" && ")[0].strip()
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(PROJECT / name, tmp_path)
    environment = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment, check=True)
    listed = (tmp_path / "requirements.txt").read_text().splitlines()
    assert listed == CONFIG["project"]["dependencies"]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (tmp_path / "constraints.txt").read_text().splitlines()
    }
    assert {Requirement(line).name.lower().replace("_", "-") for line in listed} <= pinned
    assert first.endswith("-c constraints.txt -r requirements.txt")
    assert "pip install -c constraints.txt --no-deps ." in second


def test_the_index_of_torch_is_an_option_only_where_it_is_named(tmp_path: Path) -> None:
    """As the shell reads the install line of both variants; ``pip`` is a program that prints its arguments."""
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    pip.chmod(0o755)
    install = arguments("RUN")[0].partition(" && ")[2].strip()
    for index, expected in (("", []), ("http://index/cpu", ["--extra-index-url", "http://index/cpu"])):
        done = subprocess.run(
            ["sh", "-c", install], env={"PATH": f"{tmp_path}:{os.environ['PATH']}", "TORCH_INDEX": index},
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        assert done.stdout.split() == ["install", *expected, "-c", "constraints.txt", "-r", "requirements.txt"]


def test_the_image_starts_a_command_that_the_wheel_installs() -> None:
    (entry,) = arguments("ENTRYPOINT")
    assert shlex.split(entry.strip("[]")) == list(CONFIG["project"]["scripts"])


def test_the_workflow_of_hosted_ci_runs_the_whole_check_on_every_supported_python() -> None:
    (job,) = yaml.safe_load((PROJECT / ".github/workflows/check.yml").read_text())["jobs"].values()
    supported = SpecifierSet(CONFIG["project"]["requires-python"])
    assert job["strategy"]["matrix"]["python"] == [f"3.{minor}" for minor in range(30) if f"3.{minor}" in supported]
    assert job["steps"][-1] == {"run": "bash .ci/run"}
    script = (PROJECT / ".ci/run").read_text()
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    targets = set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    assert (
        {words.split()[1] for words in script.splitlines() if words.startswith("make ")} == {"check", "test"} <= targets
    )


HOOKS: list[dict[str, Any]] = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]


@pytest.mark.parametrize("hook", HOOKS, ids=[hook["id"] for hook in HOOKS])
def test_a_hook_runs_a_linter_of_the_environment(hook: dict[str, Any]) -> None:
    """It fetches nothing; and `make check` runs the same linter."""
    assert hook["language"] == "system"
    program = Path(hook["entry"].split()[0])
    assert program.parent == Path(".venv/bin")
    assert shutil.which(program.name, path=str(Path(sys.executable).parent))
    assert f"$(BIN)/{program.name}" in (PROJECT / "Makefile").read_text()


def test_the_places_of_slow_tests_are_there_and_no_test_in_them_is_marked_again() -> None:
    places = [PROJECT / "tests" / place for place in SLOW_PLACES]
    assert [place for place in places if not place.exists()] == []
    marked = [path for path in PROJECT.glob("tests/**/test_*.py") if "pytest.mark.slow" in path.read_text()]
    assert [path for path in marked if is_slow(path)] == []


def test_every_package_has_tests_that_are_not_slow() -> None:
    files: dict[Path, list[Path]] = {}  # by folder: tests mirrors the packages
    for name in ("pipeline", "flows", "trainer"):
        for path in (PROJECT / "tests" / name).rglob("test_*.py"):
            files.setdefault(path.parent, []).append(path)
    assert len(files) > 15
    assert [folder for folder, paths in files.items() if all(map(is_slow, paths))] == []


def test_the_tests_that_compute_are_there_and_may_run_side_by_side() -> None:
    for place in COMPUTING:
        path = PROJECT / place
        files = [path] if path.is_file() else sorted(path.glob("test_*.py"))
        assert files, place
        assert not any("mark.alone" in file.read_text() for file in files), place


def test_a_setting_that_changes_nothing_on_a_machine_is_known_for_it() -> None:
    """The first machine has AVX-512 and two cores, the second neither."""
    avx512 = Machine(frozenset({"avx2", "avx512bw"}), "avx512", num_cores=2, max_workers=2)
    avx2 = Machine(frozenset({"avx2"}), "avx2", num_cores=4, max_workers=4)
    same: dict[Machine, dict[str, str]] = {avx512: {}, avx2: {}}
    for machine, reasons in same.items():
        unchanged, *others = settings(machine.num_cores)
        for setting in others:
            if machine.conditions(setting) == machine.conditions(unchanged):
                reasons[setting.name] = machine.same_because(setting, unchanged)
    assert same[avx512] == {
        "AVX512_CORE": "this processor has no avx512_vnni, avx512_bf16, avx512_fp16, amx_bf16",
        "AVX512_CORE_BF16": "this processor has no avx512_fp16, amx_bf16",
        "AVX512_CORE_AMX": "it is the limit where none is set",
        "ATen avx512": "ATen takes avx512 by itself",
        "OMP 1": "each process has 1 thread there too",
        "two cores": "this machine has 2 cores",
    }
    lacking = "avx512_vnni, avx512_bf16, avx512_fp16, amx_bf16"
    assert same[avx2] == {
        "AVX2": f"this processor has no avx_vnni, avx512bw, {lacking}",
        "AVX512_CORE": f"this processor has no {lacking}",
        "AVX512_CORE_BF16": "this processor has no avx512_fp16, amx_bf16",
        "AVX512_CORE_AMX": "it is the limit where none is set",
        "ATen avx2": "ATen takes avx2 by itself",
        "OMP 1": "each process has 1 thread there too",
    }
    named = {setting.name: setting for setting in settings(4)}
    assert avx2.missing_for_aten(named["ATen avx512"]) == "avx512bw"
    assert [avx2.num_workers(named[name]) for name in ("unchanged", "OMP 2", "one core", "two cores")] == [4, 1, 1, 2]


def test_rows_of_several_settings_set_all_that_single_ones_do() -> None:
    def what(chosen: list[Setting]) -> set[object]:
        environment = {pair for each in chosen for pair in each.environment.items()}
        return environment | {each.arguments for each in chosen} | {each.cores for each in chosen}

    together = settings_together(2, ["other"])
    assert what(settings(2)) == what(together)
    assert any(each.num_busy and each.cores is None for each in together)
    assert any(each.in_one_process for each in together) and together[-1].python == "other"


@pytest.mark.slow
def test_a_skip_fails_in_the_processes_of_xdist_too(tmp_path: Path) -> None:
    """As in CI; and a logged error does."""
    (tmp_path / "test_here.py").write_text(
        "import logging, pytest\n"
        "def test_skipped(): pytest.skip('no reason')\n"
        "def test_logs(): logging.getLogger('pipeline.x').error('an error')\n"
        "def test_warns(): import warnings; warnings.warn('a warning')\n"
        "@pytest.mark.alone\ndef test_alone(): raise AssertionError\n"
    )
    shutil.copy(PROJECT / "tests" / "conftest.py", tmp_path / "conftest.py")
    words = ["-c", str(PROJECT / "pyproject.toml"), "--rootdir", str(tmp_path), "-n", "1", "--dist", "loadfile", "-q"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, "-m", "not alone", str(tmp_path)], cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT), "HEARSCAPE_NO_SKIPS": "1"}, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert "2 failed, 1 passed" in done.stdout and "1 error" in done.stdout, done.stdout
    assert "skipped, though HEARSCAPE_NO_SKIPS is set" in done.stdout
    assert "logged: an error" in done.stdout
    assert "UserWarning: a warning" in done.stdout
