"""Media that points elsewhere is opened as a file and as nothing else: no file beside it is read, no address is asked."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import ClipError, MediaError
from pipeline.media import ffmpeg as media
from pipeline.media.cut import CutSettings, RenditionSettings, cut_clip
from pipeline.media.decoding import Decoding
from pipeline.media.facts import MediaFacts
from pipeline.schema import Bars, Span
from pipeline.synthetic.video import write_video
from tests.faults.pointers import pointers
from tests.faulty_server import Answer, FaultyServer
from tests.footage import FPS, noise, shots

CUT = CutSettings(renditions=(RenditionSettings(name="96", short_side_px=96),), preset="ultrafast")


@pytest.fixture(scope="module")
def secret() -> Iterator[Path]:
    """A video that is nobody's business, in a folder with a short name: a file with a long reference in it is so large that ffmpeg takes
    its own bytes for a picture."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "secret.ts"
        write_video(path, shots([2.0]), noise(2), fps=FPS)
        yield path


@pytest.fixture(scope="module")
def server(secret: Path) -> Iterator[FaultyServer]:
    with FaultyServer() as running:
        running.serve("/secret.ts", Answer(body=secret.read_bytes(), content_type="video/mp2t"))
        yield running


@pytest.fixture(scope="module")
def folder(secret: Path, server: FaultyServer) -> Path:
    """The pointers lie beside the secret, so that relative names lead to it as well."""
    for name, content in pointers(secret, server.url("/secret.ts")):
        (secret.parent / name).write_bytes(content)
    return secret.parent


def test_without_our_options_some_of_these_would_be_followed(
    folder: Path, server: FaultyServer, tmp_path: Path
) -> None:
    """Or the other tests here would show nothing."""
    anywhere = ["-protocol_whitelist", "file,http,tcp"]
    followed = {
        "concat2.mp4": ["-safe", "0"],
        "concat3.mp4": [*anywhere, "-safe", "0"],
        "hls3.mp4": [*anywhere, "-f", "hls"],
        "alias.mov": ["-enable_drefs", "1"],
    }
    for name, options in followed.items():
        command = [media.ffmpeg_path(), "-v", "quiet", "-nostdin", "-y", *options, "-i", str(folder / name)]
        subprocess.run([*command, "-f", "mpegts", str(tmp_path / name)], check=False)
    assert {name: (tmp_path / name).stat().st_size > 1_000 for name in followed} == dict.fromkeys(followed, True)
    assert server.hits() >= 2


def test_no_pointer_is_followed_by_the_decoder(folder: Path, server: FaultyServer) -> None:
    hits = server.hits()
    codes = set()
    for path in sorted(folder.iterdir()):
        if path.name == "secret.ts":
            continue
        try:
            facts = media.probe(path)
        except MediaError as error:
            codes.add(error.code)
            continue
        assert (facts.video, facts.sound) == (None, None), path.name
        assert list(Decoding(path, sample_rate_hz=44_100)) == [], path.name
    assert codes == {"not_media", "no_frames"}
    assert server.hits() == hits


def test_no_pointer_is_followed_by_ffmpeg(folder: Path, server: FaultyServer, secret: Path, tmp_path: Path) -> None:
    """What ffmpeg cuts is told by the facts of a good file, as if the pointer had passed for one."""
    hits = server.hits()
    facts: MediaFacts = media.probe(secret)
    for path in sorted(folder.iterdir()):
        if path.name == "secret.ts":
            continue
        out = tmp_path / path.name
        out.mkdir()
        with pytest.raises(ClipError):
            cut_clip(path, facts, Span(0, 1500), Bars(), CUT, out)
        assert sum(file.stat().st_size for file in out.iterdir()) < 2_000, path.name
    assert server.hits() == hits
