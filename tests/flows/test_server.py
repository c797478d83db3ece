from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.server import api_url, check_port, free_port, is_healthy
from pipeline.build.recipe import load_recipe
from pipeline.errors import UserError

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """That of a user who has set nothing, with a Prefect folder of its own."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return {**inherited, "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect")), "COLUMNS": "200"}


def until(condition: object, seconds: float = 120) -> bool:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.2)
    return False


def prefect(*words: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "prefect", *words],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture(scope="module")
def served(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment of a user beside whom ``python -m flows.serve`` runs; at the end, Ctrl-C takes it all down."""
    port = free_port()
    runner = subprocess.Popen(
        [sys.executable, "-m", "flows.serve", "--port", str(port)],
        cwd=PROJECT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert runner.stdout is not None
    assert any(line.startswith("Run:") for line in runner.stdout), "the server did not come up"
    yield {**environment, "PREFECT_API_URL": api_url(port)}
    runner.send_signal(signal.SIGINT)
    runner.stdout.read()
    assert runner.wait(60) == 0
    runner.stdout.close()
    assert not is_healthy(api_url(port))


def test_the_short_name_runs_the_flow(served: dict[str, str], recipe: Path) -> None:
    ran = prefect(
        "deployment",
        "run",
        "build-dataset",
        "--param",
        f"recipe={json.dumps(str(recipe))}",
        "--watch",
        environment=served,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Creating flow run for deployment 'build-dataset/build-dataset'" in ran.stdout
    assert "Flow run finished successfully" in ran.stdout
    assert (recipe.with_name("tiny") / "manifest.json").exists()


def test_a_whole_recipe_is_a_parameter_as_well(served: dict[str, str], recipe: Path) -> None:
    """What the form of Prefect's UI sends: every setting, the defaults too."""
    words = json.dumps({"recipe": json.loads(load_recipe(recipe).model_dump_json())})
    ran = prefect("deployment", "run", "build-dataset", "--params", words, "--watch", environment=served)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert (recipe.with_name("tiny") / "manifest.json").exists()


def test_a_recipe_is_validated_before_the_run_is_created(served: dict[str, str]) -> None:
    good = {"name": "x", "output": "x", "sources": ["x.csv"]}
    wrong = json.dumps({**good, "execution": {"workers": 0}})
    ran = prefect("deployment", "run", "build-dataset/build-dataset", "-p", f"recipe={wrong}", environment=served)
    assert ran.returncode == 1
    assert "Validation failed for field 'recipe.execution.workers'" in " ".join(ran.stdout.split())
    unknown = json.dumps({**good, "nonsense": 1})
    ran = prefect("deployment", "run", "build-dataset", "-p", f"recipe={unknown}", environment=served)
    assert ran.returncode == 1
    assert "'nonsense' was unexpected" in " ".join(ran.stdout.split())


def test_names_of_others_are_left_to_prefect(served: dict[str, str]) -> None:
    ran = prefect("deployment", "run", "other", environment=served)
    assert ran.returncode == 1
    assert "Invalid deployment name" in ran.stdout + ran.stderr


def test_a_server_does_not_outlive_a_killed_parent(environment: dict[str, str]) -> None:
    hold = (
        "import time; from flows.server import prefect_server\n"
        "with prefect_server(ui=False) as url: print(url, flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", hold], cwd=PROJECT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    url = parent.stdout.readline().strip()
    assert is_healthy(url)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert until(lambda: not is_healthy(url), 30)


def test_a_port_that_is_taken_is_refused(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} .* --port"):
            check_port(port)
    check_port(port)


def test_settings_of_the_folder(environment: dict[str, str]) -> None:
    shown = prefect("config", "view", "--show-sources", environment=environment).stdout
    assert re.search(r"PREFECT_API_URL='http://127.0.0.1:4200/api' \(from .*pyproject.toml\)", shown), shown
    assert "PREFECT_SERVER_ANALYTICS_ENABLED='False'" in shown
    elsewhere = {**environment, "PREFECT_API_URL": "http://127.0.0.1:1/api"}
    shown = prefect("config", "view", "--show-sources", environment=elsewhere).stdout
    assert "PREFECT_API_URL='http://127.0.0.1:1/api' (from env)" in shown
