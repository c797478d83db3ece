"""Sections of videos, and the formats that are chosen."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.errors import TransientDownloadError
from pipeline.fetch.download_store import DownloadStore
from pipeline.media.ffmpeg import ffmpeg_path
from tests.faulty_server import Answer, Fault, FaultyServer
from tests.pipeline.fetch.fetching import ONCE, QUICK, Get, failure, leftovers


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """20 s whose luma is 16 + 10 t, with a burst of sound from each full second to half past; a keyframe every 2 s."""
    path = tmp_path_factory.mktemp("clock") / "clock.mp4"
    picture = "color=black:s=64x64:r=25:d=20,format=yuv420p,geq=lum='16+T*10':cb=128:cr=128"
    sound = "aevalsrc='if(gt(mod(t,1),0.5),0,0.5*sin(2*PI*440*t))':d=20:s=48000"
    codecs = ["-c:v", "libx264", "-g", "50", "-sc_threshold", "0", "-c:a", "aac", "-movflags", "+faststart"]
    inputs = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound]
    subprocess.run([ffmpeg_path(), "-v", "error", *inputs, *codecs, str(path)], check=True)
    return path.read_bytes()


def times_told_by_the_picture(path: str) -> list[tuple[float, float]]:
    """Time in the file (from its start), and the time that the luma says."""
    with av.open(path) as container:
        assert container.start_time is not None
        start = container.start_time / 1_000_000
        return [
            (float(frame.time or 0.0) - start, (float(frame.to_ndarray()[8:56, 8:56].mean()) - 16) / 10)
            for frame in container.decode(video=0)
        ]


def bursts(path: str) -> list[float]:
    """Times in the file (from its start) at which the sound begins after silence."""
    with av.open(path) as container:
        assert container.start_time is not None
        start = container.start_time / 1_000_000
        frames = list(container.decode(audio=0))
        first = float(frames[0].time or 0.0) - start
        samples = np.concatenate([frame.to_ndarray()[0] for frame in frames])
    loud = np.abs(samples[: len(samples) // 480 * 480].reshape(-1, 480)).max(axis=1) > 0.2
    return [first + n / 100 for n in np.flatnonzero(loud[1:] & ~loud[:-1]) + 1]


def test_only_the_wanted_section_of_a_page(server: FaultyServer, get: Get, clock: bytes) -> None:
    server.serve("/clock.mp4", Answer(body=clock))
    page = b"<html><title>Clock</title><body><video src='/clock.mp4'></video></body></html>"
    url = server.serve("/watch", Answer(body=page, content_type="text/html"))
    settings = QUICK.model_copy(update={"sections": True})
    fetched = get(url, settings, start_ms=5300, end_ms=9100)
    assert 3800 <= fetched.offset_ms <= 4000  # the keyframe at 4 s; the sound begins a packet earlier
    offset_seconds = fetched.offset_ms / 1000
    pictures = times_told_by_the_picture(fetched.path)
    assert max(abs(in_file + offset_seconds - told) for in_file, told in pictures) <= 0.1  # luma is in steps of 0.1 s
    assert pictures[0][0] + offset_seconds == pytest.approx(4.0, abs=0.002)
    assert pictures[-1][0] + offset_seconds >= 9.1 - 0.04
    in_source = [burst + offset_seconds for burst in bursts(fetched.path)]
    assert [round(time_) for time_ in in_source[-5:]] == [5, 6, 7, 8, 9]
    assert max(abs(burst - round(burst)) for burst in in_source) <= 0.025
    assert fetched.num_bytes < len(clock) / 2
    assert server.hits("/clock.mp4") >= 1
    whole = get(url)
    assert (whole.offset_ms, whole.num_bytes) == (0, len(clock))


@pytest.mark.parametrize("domain", ["127.0.0.1", "media.example"])
def test_a_section_that_takes_cookies_is_the_whole_file(
    server: FaultyServer, get: Get, clock: bytes, tmp_path: Path, domain: str
) -> None:
    """ffmpeg would show them on its command line."""
    (tmp_path / "cookies.txt").write_text(f"# Netscape HTTP Cookie File\n{domain}\tFALSE\t/\tFALSE\t0\tsession\tHUSH\n")
    server.serve("/clock.mp4", Answer(body=clock))
    page = b"<html><title>Clock</title><body><video src='/clock.mp4'></video></body></html>"
    url = server.serve("/watch", Answer(body=page, content_type="text/html"))
    settings = QUICK.model_copy(update={"sections": True, "cookies_file": tmp_path / "cookies.txt"})
    fetched = get(url, settings, start_ms=5300, end_ms=9100)
    is_sent = domain == "127.0.0.1"
    assert [("HUSH" in hit.headers.get("Cookie", "")) for hit in server.requests] == [is_sent] * server.hits()
    assert (fetched.offset_ms == 0, fetched.num_bytes == len(clock)) == (is_sent, is_sent)


def test_a_section_of_a_plain_link_is_the_whole_file(server: FaultyServer, get: Get, clock: bytes) -> None:
    settings = QUICK.model_copy(update={"sections": True})
    url = server.serve("/clock.mp4", Answer(body=clock))
    assert get(url, settings, start_ms=5000, end_ms=6000) == get(url, settings, start_ms=7000)
    assert server.hits() == 2
    hidden = get(server.serve("/get?f=1", Answer(body=clock)), settings, start_ms=5000, end_ms=6000)
    assert (hidden.offset_ms, hidden.num_bytes) == (0, len(clock))


def test_a_section_that_stalls_is_stopped(server: FaultyServer, get: Get, store: DownloadStore, clock: bytes) -> None:
    server.serve("/clock.mp4", Answer(body=clock, fault=Fault.STALL, fault_after=len(clock) // 4))
    page = b"<html><body><video src='/clock.mp4'></video></body></html>"
    settings = ONCE.model_copy(update={"sections": True, "socket_timeout_seconds": 3.0, "stall_seconds": 3.0})
    with pytest.raises(TransientDownloadError) as caught:
        get(server.serve("/watch", Answer(body=page, content_type="text/html")), settings, start_ms=15000)
    assert caught.value.code == "stalled"
    assert leftovers(store) == []


def test_a_page_of_separate_picture_and_sound_is_merged(
    server: FaultyServer, get: Get, clock: bytes, tmp_path: Path
) -> None:
    source, folder = tmp_path / "clock.mp4", tmp_path / "dash"
    source.write_bytes(clock)
    folder.mkdir()
    command = [ffmpeg_path(), "-v", "error", "-i", str(source), "-c", "copy", "-f", "dash", "-seg_duration", "4"]
    subprocess.run([*command, str(folder / "a.mpd")], check=True, cwd=folder)
    for path in folder.iterdir():
        kind = "application/dash+xml" if path.suffix == ".mpd" else "video/mp4"
        server.serve(f"/{path.name}", Answer(body=path.read_bytes(), content_type=kind))
    fetched = get(server.url("/a.mpd"))
    pictures = times_told_by_the_picture(fetched.path)
    assert len(pictures) == 500
    assert max(abs(in_file - told) for in_file, told in pictures) <= 0.1
    assert max(abs(burst - round(burst)) for burst in bursts(fetched.path)) <= 0.025
    (folder / "chunk-stream1-00003.m4s").unlink()
    server.serve("/chunk-stream1-00003.m4s", Answer(status=404))
    server.serve("/b.mpd", Answer(body=(folder / "a.mpd").read_bytes(), content_type="application/dash+xml"))
    assert failure(get, server.url("/b.mpd")).code == "http_404"  # not a video with a hole


@pytest.mark.parametrize(("wanted", "given"), [(192, 192), (380, 192), (None, 384), (50, 96)])
def test_of_several_heights_the_greatest_that_is_wanted(
    server: FaultyServer, get: Get, tmp_path: Path, wanted: int | None, given: int
) -> None:
    """Where all are higher, it is the one that is nearest."""
    master = "#EXTM3U\n"
    for height in (96, 192, 384):
        inputs = ["-f", "lavfi", "-i", f"testsrc=s=256x{height}:r=25:d=1", "-f", "lavfi", "-i", "sine=d=1"]
        codecs = ["-c:v", "libx264", "-preset", "ultrafast", "-c:a", "aac"]
        path = tmp_path / f"{height}.ts"
        subprocess.run([ffmpeg_path(), "-v", "error", *inputs, *codecs, str(path)], check=True)
        server.serve(f"/{height}.ts", Answer(body=path.read_bytes(), content_type="video/mp2t"))
        one = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1.0,\n/{height}.ts\n#EXT-X-ENDLIST\n"
        server.serve(f"/{height}.m3u8", Answer(body=one.encode(), content_type="application/vnd.apple.mpegurl"))
        master += f"#EXT-X-STREAM-INF:BANDWIDTH={height * 1000},RESOLUTION=256x{height}\n/{height}.m3u8\n"
    url = server.serve("/all.m3u8", Answer(body=master.encode(), content_type="application/vnd.apple.mpegurl"))
    fetched = get(url, QUICK.model_copy(update={"height": wanted}))
    with av.open(fetched.path) as container:
        assert container.streams.video[0].height == given
    assert fetched.provenance["format"]["height"] == given
    assert [server.hits(f"/{height}.ts") for height in (96, 192, 384)] == [height == given for height in (96, 192, 384)]


def test_a_video_that_is_too_long_is_not_fetched(
    server: FaultyServer, get: Get, store: DownloadStore, video: bytes
) -> None:
    server.serve("/long.mp4", Answer(body=video))
    told = {"@context": "https://schema.org", "@type": "VideoObject", "name": "A day", "duration": "PT5H"}
    told |= {"contentUrl": server.url("/long.mp4"), "author": "A. Nyone", "uploadDate": "2020-02-03"}
    page = f"<html><script type='application/ld+json'>{json.dumps(told)}</script></html>".encode()
    url = server.serve("/watch", Answer(body=page, content_type="text/html"))
    error = failure(get, url)
    assert (error.code, str(error)) == ("too_long", "18000 s long, over download.max_duration_seconds (14400)")
    assert [*store.root.glob("objects/*/*"), *leftovers(store)] == []
    provenance = get(url, QUICK.model_copy(update={"max_duration_seconds": None})).provenance
    assert len([*store.root.glob("objects/*/*")]) == 1
    assert [provenance[name] for name in ("title", "uploader", "webpage_url")] == ["A day", "A. Nyone", url]
