"""Writes broken and hostile media, made from valid files: ``python -m tests.faults.corpus FOLDER``.

Files truncated at every structure, headers with wrong numbers, impossible time stamps, and small files that decode to very much data.
"""

from __future__ import annotations

import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pipeline.media.ffmpeg import ffmpeg_path
from pipeline.synthetic.video import write_video
from tests.footage import noise, shots

SECONDS = 2.0
SIZE = (160, 96)
SEEDS: dict[str, dict[str, object]] = {
    "a.mp4": {"faststart": True, "gop": 12},
    "b.mp4": {},
    "c.mkv": {"video_codec": "libvpx-vp9", "audio_codec": "libopus", "preset": None, "extra": ["-cpu-used", "8", "-deadline", "realtime"]},
    "d.avi": {"video_codec": "mpeg4", "audio_codec": "libmp3lame", "preset": None},
    "e.ts": {"gop": 12},
    "f.flv": {},
    "g.mov": {"video_codec": "mjpeg", "audio_codec": "pcm_s16le", "preset": None, "pix_fmt": "yuvj420p"},
    "h.mpg": {"video_codec": "mpeg2video", "audio_codec": "mp2", "preset": None},
    "i.mp4": {"extra": ["-movflags", "frag_keyframe+empty_moov+default_base_moof"], "gop": 12},
}  # fmt: skip
CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta"}
EXTREME_VALUES = (0, 1, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, 0x0100_0000)


def write_seeds(folder: Path) -> list[Path]:
    """Writes valid files of two seconds in many containers and codecs."""
    paths = []
    for number, (name, options) in enumerate(SEEDS.items()):
        frames = shots([SECONDS], size=SIZE)
        write_video(folder / name, frames, noise(SECONDS, seed=number, level=0.05), **options)  # type: ignore[arg-type]
        paths.append(folder / name)
    return paths


def atoms(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end (exclusive) of every atom of an MP4, nested ones included, in the order of the file."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, name = struct.unpack_from(">I4s", data, start)
        size = size if size >= 8 else end - start
        yield name, start, min(start + size, end)
        if name in CONTAINERS:
            yield from atoms(data, start + 8, min(start + size, end))
        start += size


def patched(data: bytes, offset: int, content: bytes) -> bytes:
    """``data`` with ``content`` in place of the bytes at ``offset``."""
    return data[:offset] + content + data[offset + len(content) :]


def truncations(data: bytes) -> Iterator[tuple[str, bytes]]:
    """File names and contents: an MP4 cut off before every atom, in its header, and in its middle."""
    name_of_length: dict[int, str] = {}
    for name, begin, end in atoms(data):
        atom_name = name.decode("latin-1").strip()
        for place, length in (("before", begin), ("head", begin + 6), ("middle", (begin + end) // 2)):
            name_of_length.setdefault(length, f"cut-{place}-{atom_name}-{length}.mp4")
    yield from ((name, data[:length]) for length, name in sorted(name_of_length.items()))


FIELDS = {
    # atom: offset of a 32-bit field from the start of the atom -> name of the field
    b"mvhd": {20: "timescale", 24: "duration"},
    b"tkhd": {20: "id", 28: "duration", 84: "width", 88: "height"},
    b"mdhd": {20: "timescale", 24: "duration"},
    b"elst": {12: "entries", 16: "duration", 20: "start"},
    b"stts": {12: "entries", 16: "count", 20: "delta"},
    b"ctts": {12: "entries", 16: "count", 20: "offset"},
    b"stsz": {12: "size", 16: "count", 20: "first"},
    b"stsc": {12: "entries", 20: "per-chunk"},
    b"stco": {12: "entries", 16: "first"},
    b"stss": {12: "entries", 16: "first"},
    # these fields of sample entries hold the picture's size, or the number of channels and the sample rate
    b"stsd": {12: "entries", 16: "entry-size", 32: "entry-32", 40: "channels-bits", 48: "size-or-rate", 52: "entry-52"},
}


def lies(data: bytes) -> Iterator[tuple[str, bytes]]:
    """File names and contents: an MP4 with one extreme value, in turn in each field of FIELDS and in the size of each atom."""
    count: dict[bytes, int] = {}
    for name, begin, end in atoms(data):
        count[name] = number = count.get(name, 0) + 1
        atom_name = f"{name.decode('latin-1').strip()}{number}"
        for offset, field in FIELDS.get(name, {}).items():
            for value in EXTREME_VALUES:
                if begin + offset + 4 <= end:
                    yield (
                        f"lie-{atom_name}-{field}-{value:x}.mp4",
                        patched(data, begin + offset, struct.pack(">I", value)),
                    )
        for size in (0, 1, 4, 0x7FFF_FFFF, 0xFFFF_FFFF):
            yield f"size-{atom_name}-{size:x}.mp4", patched(data, begin, struct.pack(">I", size))


def bit_flips(seeds: list[Path], rng: random.Random, num_each: int) -> Iterator[tuple[str, bytes]]:
    """File names and contents: ``num_each`` versions of every seed with 1, 4 or 40 flipped bits."""
    for path in seeds:
        for number in range(num_each):
            data = bytearray(path.read_bytes())
            for _ in range(rng.choice((1, 4, 40))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            yield f"flip{number}-{path.name}", bytes(data)


def png(width: int, height: int) -> bytes:
    """A black greyscale picture: a few kilobytes that decode to ``width * height`` bytes."""
    compressor = zlib.compressobj(9)
    row = bytes(1 + width)
    pixels = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def write_bomb(path: Path, width: int, height: int, num_frames: int) -> None:
    """Writes a video with sound whose PNG pictures decode to a thousand times their size."""
    picture = png(width, height)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "gray"
        sound = container.add_stream("pcm_s16le", rate=48_000)
        for number in range(num_frames):
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts, packet.time_base = stream, number, number, Fraction(1, 25)
            container.mux(packet)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000 * num_frames // 25), np.int16), "s16", "mono")
        frame.sample_rate = 48_000
        container.mux(sound.encode(frame))


def write_many_tracks(seed: Path, path: Path, num_tracks: int) -> None:
    """Writes the seed's video track and ``num_tracks`` copies of its sound track."""
    command = [ffmpeg_path(), "-v", "error", "-y", "-i", str(seed), "-map", "0:v", *(["-map", "0:a"] * num_tracks)]
    subprocess.run([*command, "-c", "copy", str(path)], check=True)


def write_with_times(seed: Path, path: Path, shift: dict[int, float]) -> None:
    """Writes the seed with changed time stamps: from packet ``n`` of each track on, all are moved by ``shift[n]`` seconds."""
    offset = "+".join(f"gte(N,{number})*({seconds})/TB" for number, seconds in shift.items())
    command = [ffmpeg_path(), "-v", "error", "-y", "-i", str(seed), "-c", "copy", "-avoid_negative_ts", "disabled"]
    subprocess.run([*command, "-bsf", f"setts=pts='PTS+{offset}':dts='DTS+{offset}'", str(path)], check=True)


def crafted(seeds: list[Path], folder: Path) -> None:
    """Writes the cases that are not changes of one seed's bytes: empty and joined files, impossible times, many tracks, bombs."""
    by_name = {path.name: path for path in seeds}
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "one-byte.mp4").write_bytes(b"\0")
    (folder / "zeros.mp4").write_bytes(bytes(100_000))
    (folder / "noise.mp4").write_bytes(random.Random(5).randbytes(100_000))
    (folder / "only-ftyp.mp4").write_bytes(by_name["a.mp4"].read_bytes()[:32])
    (folder / "twice.mp4").write_bytes(by_name["a.mp4"].read_bytes() * 2)
    ts = by_name["e.ts"].read_bytes()
    write_video(folder / "other.ts", shots([SECONDS], size=(240, 192)), noise(SECONDS, seed=9, channels=2), fps=30.0)
    other = (folder / "other.ts").read_bytes()
    (folder / "other.ts").unlink()
    (folder / "changes-size.ts").write_bytes(ts + other)
    (folder / "no-sync.ts").write_bytes(b"".join(ts[at : at + 187] for at in range(0, len(ts), 188)))
    for name, shift in {
        "gap-of-an-hour": {20: 3600.0},
        "gap-of-three-days": {20: 3 * 86_400.0},
        "gap-of-ten-years": {20: 10 * 365 * 86_400.0},
        "starts-late": {0: 1000.0},
        "negative-start": {0: -5.0},
        "many-gaps": dict.fromkeys(range(5, 45, 5), 40.0),
    }.items():
        write_with_times(by_name["a.mp4"], folder / f"{name}.mkv", shift)
    times = [number * 1e-5 for number in range(50)]
    write_video(folder / "million-fps.mp4", shots([SECONDS], size=SIZE), noise(SECONDS), frame_times_seconds=times)
    write_many_tracks(by_name["a.mp4"], folder / "many-tracks.mkv", 999)
    write_bomb(folder / "bomb.mov", 11_000, 11_000, 50)
    write_bomb(folder / "gigantic.mov", 16_000, 16_000, 2)
    (folder / "bomb.srt").write_text(
        "".join(f"{n}\n00:00:01,000 --> 00:00:02,000\n<b>{'x' * 80}</b>\n\n" for n in range(50_000))
    )
    streams = ["-i", str(by_name["a.mp4"]), "-i", str(folder / "bomb.srt")]
    command = [ffmpeg_path(), "-v", "error", "-y", *streams, "-map", "0", "-map", "1", "-c", "copy"]
    subprocess.run([*command, str(folder / "subtitle-bomb.mkv")], check=True)
    (folder / "bomb.srt").unlink()


def write_corpus(folder: Path, lies_share: float = 1.0) -> list[Path]:
    """Writes every case as a file. ``lies_share``: the share of lies and truncations that are written, chosen at random."""
    folder.mkdir(parents=True, exist_ok=True)
    seeds = write_seeds(folder)
    crafted(seeds, folder)
    rng = random.Random(11)
    valid = (folder / "a.mp4").read_bytes()
    for cases in (truncations(valid), lies(valid)):
        for name, content in cases:
            if rng.random() < lies_share:
                (folder / name).write_bytes(content)
    for name, content in bit_flips(seeds, rng, num_each=2):
        (folder / name).write_bytes(content)
    return sorted(folder.iterdir())


if __name__ == "__main__":
    print(len(write_corpus(Path(sys.argv[1]))), "files")  # noqa: T201
