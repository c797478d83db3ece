from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.settings import get_current_settings

from flows.build_dataset import main
from flows.direct import exit_code
from flows.server import ServerStartError

PROJECT = Path(__file__).parents[2]


def start(arguments: list[str], tmp_path: Path, **more: str) -> subprocess.Popen[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    environment = {**inherited, **more}
    return subprocess.Popen(
        [sys.executable, "-m", "flows.build_dataset", *arguments],
        cwd=PROJECT,
        env={**environment, "PREFECT_HOME": str(tmp_path / "prefect")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group of its own, as on a terminal
    )


def test_a_recipe_that_cannot_be_used_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe.with_name("no.toml"))]) == 2
    assert capsys.readouterr().err.startswith("error: recipe ")
    assert main([str(recipe), "--set", "execution.workers=0", "--set", "cut.speed=9"]) == 2
    message = capsys.readouterr().err
    assert "execution.workers: " in message
    assert "cut.speed: there is no such setting" in message
    assert main([str(recipe), "--set", 'sources=["no.csv"]']) == 2
    assert "no.csv" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_done(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe), "--dry-run", "--set", "execution.batches_in_flight=3"]) == 0
    out = capsys.readouterr().out
    assert '"batches_in_flight": 3' in out
    assert out.splitlines()[-1].startswith("tiny: 2 sources, of which 0 are finished")
    assert "2 batches to do, 3 at a time" in out
    assert not (recipe.with_name("tiny") / "manifest.json").exists()


def test_unknown_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["recipe.toml", "--nonsense"])
    assert ended.value.code == 2
    assert "--nonsense" in capsys.readouterr().err


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    def no_server() -> None:
        raise ServerStartError("the Prefect server did not answer")

    def bug() -> None:
        raise KeyError("a bug")

    assert exit_code(lambda: None, "again") == 0
    assert exit_code(no_server, "again") == 1
    assert capsys.readouterr().err == "failed: the Prefect server did not answer\n"
    assert exit_code(interrupted, "python -m flows.build_dataset 'a b.toml'") == 130
    assert "run it again: python -m flows.build_dataset 'a b.toml'" in capsys.readouterr().err
    with pytest.raises(KeyError):
        exit_code(bug, "again")


def test_the_command_builds_on_a_temporary_server(recipe: Path, tmp_path: Path) -> None:
    built = start([str(recipe)], tmp_path)
    out, err = built.communicate(timeout=240)
    assert built.returncode == 0, err
    assert f"manifest  {tmp_path / 'tiny' / 'manifest.json'}" in out
    assert f"shards    {tmp_path / 'tiny' / 'shards' / '128'}" in out
    assert "Traceback" not in err
    assert "tiny: 2/2 sources (100%)" in err
    assert "INFO" not in err, "what Prefect narrates is not for the terminal"


@pytest.mark.parametrize(("times", "socket_timeout_seconds"), [(1, 2), (2, 300)])
def test_an_interrupted_build_says_how_to_continue(
    times: int, socket_timeout_seconds: int, recipe: Path, tmp_path: Path, prefect_harness: None
) -> None:
    """The source is on a server that takes the request and never answers; the second Ctrl-C does not wait for it."""
    url = get_current_settings().api.url
    assert url is not None
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(120)
        (tmp_path / "sources.csv").write_text(f"id,url\nslow,http://127.0.0.1:{silent.getsockname()[1]}/x.mp4\n")
        words = [str(recipe), "--set", f"download.socket_timeout_seconds={socket_timeout_seconds}"]
        words += ["--set", "download.retries=0"]
        build = start(words, tmp_path, PREFECT_API_URL=url)
        assert build.stderr is not None
        asked, _ = silent.accept()
        with asked:
            build.send_signal(signal.SIGINT)
            # on a slow machine a line of progress may come before
            assert any("Ctrl-C again" in line for line in iter(build.stderr.readline, ""))
            for _ in range(times - 1):
                build.send_signal(signal.SIGINT)
            _, err = build.communicate(timeout=60)
    assert build.returncode == 130, err
    assert f"run it again: python -m flows.build_dataset {shlex.join(words)}" in err
    assert "Traceback" not in err


def test_ctrl_c_on_a_terminal_makes_no_source_fail(recipe: Path, tmp_path: Path, prefect_harness: None) -> None:
    """There it reaches every process of the group; this one comes while ffmpeg cuts the only clip."""
    url = get_current_settings().api.url
    assert url is not None
    state = tmp_path / "tiny" / "state"
    words = [str(recipe), "--set", "cut.preset=placebo", "--set", "clips.length_seconds=10.0"]
    build = start(words, tmp_path, PREFECT_API_URL=url)
    deadline = time.monotonic() + 120
    while not list(state.glob("tmp/*/*/128.mp4")):
        assert build.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(build.pid, signal.SIGINT)
    _, err = build.communicate(timeout=60)
    assert build.returncode == 130, err
    assert "Traceback" not in err
    finished = [path.read_text() for path in state.glob("done/**/*.json*")]
    assert not [text for text in finished if '"source_id":"waves"' in text]
    assert list(state.glob("tmp/*")) == []
