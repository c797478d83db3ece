"""A build that is stopped in the middle: how soon it ends, what it leaves, and how the next run goes on."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import ffmpeg
import psutil
import pytest

from pipeline.build.build import Build
from pipeline.build.recipe import BuildRecipe, load_recipe
from pipeline.errors import StoppedError, WorkerError
from pipeline.events import Event
from pipeline.fetch.hosts import HostGate
from pipeline.media import ffmpeg as media
from pipeline.media.ffmpeg import run_ffmpeg
from pipeline.runtime.memory import is_suspended
from pipeline.runtime.stop import Stop
from pipeline.synthetic.video import write_video
from tests.faulty_server import Answer, Fault, FaultyServer
from tests.footage import FPS, noise, shots

pytestmark = pytest.mark.alone

SOON_SECONDS = 60.0  # a busy machine; what is waited for here would otherwise take an hour or for ever
RECIPE = """
name = "stopped"
output = "{output}"
sources = ["{sources}"]
[probe]
min_short_side_px = 180
[clips]
length_seconds = 3.0
min_seconds = 2.5
[cut]
renditions = [{{ name = "320", short_side_px = 320, upscale = true }}]
preset = "slow"
[download]
retries = 1
timeout_seconds = 100_000.0
backoff_seconds = 7200.0
backoff_max_seconds = 7200.0
socket_timeout_seconds = 3600.0
stall_seconds = 3600.0
max_per_host = 3
[execution]
workers = 2
downloads = 6
min_free_bytes = 0
[split]
train = 1.0
validation = 0.0
test = 0.0
"""


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "video.mp4"
    write_video(path, shots([3.4]), noise(3.4), fps=FPS)
    return path


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FaultyServer() as running:
        yield running


def recipe(folder: Path, **sources: str | Path) -> BuildRecipe:
    rows = "".join(f"{name},{where}\n" for name, where in sources.items())
    (folder / "sources.csv").write_text(f"id,url\n{rows}")
    (folder / "stopped.toml").write_text(RECIPE.format(output=folder / "out", sources=folder / "sources.csv"))
    return load_recipe(folder / "stopped.toml")


def until(happened: Callable[[], bool], seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ffmpegs() -> list[int]:
    """The running ffmpeg processes of this one."""
    pids = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.name().startswith("ffmpeg") and child.status() != psutil.STATUS_ZOMBIE:
                pids.append(child.pid)
    return pids


@contextmanager
def cuts_held(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While the block runs, every ffmpeg that cuts stops its own clock before it begins: it would work for ever."""
    (folder / "ffmpeg-held").write_text(
        "#!/bin/sh\n"
        f'case "$*" in *sound.flac*) if [ -e "{folder}/hold" ]; then kill -STOP $$; fi ;; esac\n'
        f'exec "{media.ffmpeg_path()}" "$@"\n'
    )
    (folder / "ffmpeg-held").chmod(0o755)
    monkeypatch.setattr(media, "ffmpeg_path", lambda: str(folder / "ffmpeg-held"))
    (folder / "hold").touch()
    yield
    (folder / "hold").unlink()


def recorded(build: Build) -> set[str]:
    done = build.output.local_path / "state" / "done"  # type: ignore[operator]
    return {path.stem for path in done.rglob("open/*.json")} | {path.name for path in done.rglob("*.jsonl")}


def test_a_build_ends_soon_whatever_it_is_at_and_the_next_run_goes_on(
    server: FaultyServer,
    video: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of four links one waits for a place at their host, whichever comes last: so none of them gets an answer that ends it."""
    (tmp_path / "text.mp4").write_text("This is no video.\n" * 30)
    body = video.read_bytes()
    wanted = recipe(
        tmp_path,
        cut=video,
        text=tmp_path / "text.mp4",
        stalled=server.serve("/stalled.mp4", Answer(body=body, fault=Fault.STALL, fault_after=2000)),
        silent=server.serve("/silent.mp4", Answer(fault=Fault.STALL_BEFORE_HEADERS)),
        busy=server.serve("/busy.mp4", Answer(status=503)),
        deaf=server.serve("/deaf.mp4", Answer(fault=Fault.STALL_BEFORE_HEADERS)),
    )
    events: list[Event] = []
    build = Build(wanted)
    build.check()
    (batch,) = build.plan().batches
    with (
        cuts_held(tmp_path, monkeypatch),
        ThreadPoolExecutor(1) as pool,
        closing(build),
        caplog.at_level(logging.WARNING),
    ):
        running = pool.submit(build.run_batch, batch, events.append)
        until(lambda: any(map(is_suspended, ffmpegs())))
        until(lambda: len(server.hits_by_path()) == 3 and recorded(build) == {"text"})
        time.sleep(0.3)
        started = time.monotonic()
        build.close()
        result = running.result(timeout=SOON_SECONDS)
    assert time.monotonic() - started < SOON_SECONDS
    assert ffmpegs() == []
    assert result.states == {"failed": 1}
    assert recorded(build) == {"text"}
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert [event for event in events if "stopped" in str(event).lower()] == []
    assert build.run_batch(batch, events.append).states == {}
    assert [path.name for path in (tmp_path / "out" / "state" / "tmp").iterdir()] == []

    for name in ("silent", "busy", "deaf"):
        server.serve(f"/{name}.mp4", Answer(status=404))
    server.serve("/stalled.mp4", Answer(body=body + bytes(8)))
    again = Build(wanted)
    try:
        again.check()
        (left,) = again.plan().batches
        assert {source.source_id for source in left.sources} == {"cut", "stalled", "silent", "busy", "deaf"}
        assert again.run_batch(left, events.append).states == {"kept": 2, "failed": 3}
        assert Path(again.finish(events.append).manifest_path).is_file()
    finally:
        again.close()


def test_ctrl_c_in_a_batch_does_not_wait_for_its_sources(server: FaultyServer, tmp_path: Path) -> None:
    silent = Answer(fault=Fault.STALL_BEFORE_HEADERS)
    build = Build(recipe(tmp_path, silent=server.serve("/silent.mp4", silent)))
    build.check()
    started = 0.0

    def interrupt() -> None:
        nonlocal started
        until(lambda: server.hits() == 1)
        started = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    # whoever started the tests in the background may have left Ctrl-C ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt).start()
        with pytest.raises(KeyboardInterrupt):
            build.run_batch(build.plan().batches[0], lambda event: None)
    finally:
        signal.signal(signal.SIGINT, before)
    build.close()
    assert time.monotonic() - started < SOON_SECONDS
    assert recorded(build) == set()


def endless() -> ffmpeg.nodes.OutputStream:
    return ffmpeg.input("testsrc=s=64x64", f="lavfi", re=None).output("-", f="null")


def test_ffmpeg_is_ended() -> None:
    stop = Stop()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run_ffmpeg, endless(), stop=stop)
        until(lambda: bool(ffmpegs()))
        stop.set()
        with pytest.raises(StoppedError):
            running.result(timeout=SOON_SECONDS)
    assert ffmpegs() == []
    with pytest.raises(StoppedError):
        run_ffmpeg(endless(), stop=stop)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_who_ends_ffmpeg_may_be_ending_the_build(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    for is_build_ended in (True, False):
        stop = Stop()
        monkeypatch.setattr(media, "SIGNAL_SECONDS", 300.0 if is_build_ended else 0.5)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(run_ffmpeg, endless(), stop=stop)
            until(lambda: bool(ffmpegs()))
            time.sleep(0.3)
            os.kill(ffmpegs()[0], number)
            if is_build_ended:
                time.sleep(0.2)
                stop.set()
            with pytest.raises(StoppedError if is_build_ended else WorkerError):
                running.result(timeout=SOON_SECONDS)


def test_ffmpeg_that_takes_too_long_is_ended() -> None:
    with pytest.raises(WorkerError, match=r"ffmpeg took longer than 0\.5 s"):
        run_ffmpeg(endless(), timeout_seconds=0.5)
    assert ffmpegs() == []


def test_a_gate_lets_go_of_those_who_wait() -> None:
    hosts, stop = HostGate(max_per_host=1, spacing_seconds=3600.0), Stop()

    def enter(url: str) -> None:
        with hosts.visit(url, stop):
            pass

    enter("http://b/1")
    with hosts.visit("http://a/1"), ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(enter, "http://a/2"), pool.submit(enter, "http://b/2")]
        time.sleep(0.2)
        stop.set()
        for visit in waiting:
            with pytest.raises(StoppedError):
                visit.result(timeout=SOON_SECONDS)


def test_the_child_processes_of_a_download_are_out_of_ctrl_c_s_reach() -> None:
    from pipeline.fetch.web_session import yt_dlp_module

    with yt_dlp_module().utils.Popen(["sleep", "60"]) as process:
        assert os.getpgid(process.pid) == process.pid
        process.kill()
