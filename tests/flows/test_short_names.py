from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.dataset_flow import build_dataset
from flows.dataset_report import dataset_report
from flows.server import free_port
from flows.short_names import DEPLOYMENTS, is_prefect_command, server_problem, with_full_names
from tests.faulty_server import Answer, FaultyServer

PROJECT = Path(__file__).parents[2]
FULL = "build-dataset/build-dataset"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("deployment run build-dataset", f"deployment run {FULL}"),
        ("deployments run build-dataset", f"deployments run {FULL}"),
        (f"deployment run {FULL}", f"deployment run {FULL}"),
        ("deployment run other", "deployment run other"),
        ("deployment run --watch build-dataset", f"deployment run --watch {FULL}"),
        ("deployment run build-dataset --watch --param a=1", f"deployment run {FULL} --watch --param a=1"),
        ("deployment run -p a=1 build-dataset", f"deployment run -p a=1 {FULL}"),
        ("deployment run build-dataset --tag build-dataset", f"deployment run {FULL} --tag build-dataset"),
        ("deployment run --tag=x build-dataset", f"deployment run --tag=x {FULL}"),
        ("deployment inspect build-dataset", f"deployment inspect {FULL}"),
        ("deployment schedule pause build-dataset some-id", f"deployment schedule pause {FULL} some-id"),
        ("--profile local deployment run build-dataset", f"--profile local deployment run {FULL}"),
        ("--no-prompt deployment run build-dataset", f"--no-prompt deployment run {FULL}"),
        ("deployment build-dataset", "deployment build-dataset"),
        ("deploy --name build-dataset", "deploy --name build-dataset"),
        ("flow-run inspect build-dataset", "flow-run inspect build-dataset"),
        ("", ""),
    ],
)
def test_only_deployment_names_become_full(words: str, expected: str) -> None:
    assert with_full_names(words.split()) == expected.split()


@pytest.mark.parametrize(
    ("program", "original", "expected"),
    [
        ("/somewhere/bin/prefect", ["python", "/somewhere/bin/prefect", "version"], True),
        ("prefect.exe", ["prefect.exe"], True),
        ("-m", ["python", "-X", "dev", "-m", "prefect", "version"], True),
        ("-m", ["python", "-m", "prefect.engine"], False),
        ("-c", ["python", "-c", "import prefect"], False),
        ("/somewhere/serve.py", ["python", "/somewhere/serve.py"], False),
    ],
)
def test_only_the_prefect_command_is_changed(program: str, original: list[str], expected: bool) -> None:
    assert is_prefect_command(program, original) is expected


def test_every_deployment_has_a_short_name() -> None:
    declared = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
    assert (
        [deployment["name"] for deployment in declared]
        == list(DEPLOYMENTS)
        == [build_dataset.name, dataset_report.name]
    )
    entrypoints = [deployment["entrypoint"] for deployment in declared]
    assert entrypoints == ["flows.dataset_flow.build_dataset", "flows.dataset_report.dataset_report"]


def test_a_server_that_is_not_there_is_told_in_words(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_HOME": str(tmp_path)}
    environment.pop("PREFECT_PLUGINS_ENABLED", None)
    done = subprocess.run(
        [sys.executable, "-m", "prefect", "deployment", "run", "build-dataset"],
        cwd=PROJECT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"error: no Prefect server answers at {url}: start one, in another terminal, with python -m flows.serve"
    )
    assert "Traceback" not in done.stdout + done.stderr


def test_nothing_is_said_of_a_server_that_answers_nor_before_other_commands() -> None:
    words = ["deployment", "run", FULL]
    with FaultyServer() as server:
        server.serve("/api/admin/version", Answer(body=b'"3.8.8"', content_type="application/json"))
        assert server_problem(words, server.url("/api")) is None
    closed = f"http://127.0.0.1:{free_port()}/api"
    assert server_problem(words, closed) is not None
    assert server_problem(words, None) is None
    assert server_problem(["deployment", "run", "other/other"], closed) is None
    assert server_problem(["--profile", "elsewhere", *words], closed) is None


def test_the_plugin_loads_nothing_of_the_pipeline() -> None:
    show = "import prefect, sys; print(sorted(name for name in sys.modules if name.split('.')[0] in ('pipeline', 'flows')))"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [sys.executable, "-c", show], cwd=PROJECT, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['flows', 'flows.short_names']", "is the project installed (pip install -e .)?"
