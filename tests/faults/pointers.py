"""Makes files that look like videos and refer to other files or addresses, byte by byte after the specification of each format."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit


def atom(name: bytes, *content: bytes) -> bytes:
    """An atom of MP4: size, name, content."""
    body = b"".join(content)
    return struct.pack(">I4s", 8 + len(body), name) + body


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of RIFF."""
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def reference_movie(reference: bytes, kind: bytes = b"url ") -> bytes:
    """A QuickTime movie of 50 frames of raw RGB whose data, by its ``dref``, are in another file or at a URL (QuickTime file format,
    "Data reference atoms")."""
    flags = struct.pack(">I", 0)  # 0: not in this file
    data_reference = atom(b"dref", flags, struct.pack(">I", 1), atom(kind, flags, reference))
    entry = atom(
        b"raw ", bytes(6), struct.pack(">H", 1), bytes(16), struct.pack(">HH", 16, 16), struct.pack(">II", 72 << 16, 72 << 16),
        bytes(4), struct.pack(">H", 1), bytes(32), struct.pack(">Hh", 24, -1),
    )  # fmt: skip
    table = atom(
        b"stbl",
        atom(b"stsd", flags, struct.pack(">I", 1), entry),
        atom(b"stts", flags, struct.pack(">III", 1, 50, 1)),
        atom(b"stsc", flags, struct.pack(">IIII", 1, 1, 50, 1)),
        atom(b"stsz", flags, struct.pack(">II", 768, 50)),
        atom(b"stco", flags, struct.pack(">II", 1, 0)),
    )
    media = atom(
        b"mdia",
        atom(b"mdhd", flags, struct.pack(">IIIIHH", 0, 0, 25, 50, 0, 0)),
        atom(b"hdlr", flags, b"mhlrvide", bytes(12), b"\0"),
        atom(b"minf", atom(b"vmhd", struct.pack(">I", 1), bytes(8)), atom(b"dinf", data_reference), table),
    )
    matrix = struct.pack(">9I", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    size = struct.pack(">II", 16 << 16, 16 << 16)
    track = atom(b"tkhd", struct.pack(">I", 7), struct.pack(">IIIII", 0, 0, 1, 0, 50), bytes(16), matrix, size)
    movie = atom(
        b"mvhd",
        flags,
        struct.pack(">IIIIIH", 0, 0, 25, 50, 1 << 16, 256),
        bytes(10),
        matrix,
        bytes(24),
        struct.pack(">I", 2),
    )
    return (
        atom(b"ftyp", b"qt  ", bytes(4), b"qt  ")
        + atom(b"moov", movie, atom(b"trak", track, media))
        + atom(b"mdat", bytes(64))
    )


def alias(path: Path) -> bytes:
    """A Macintosh alias record, as QuickTime's ``alis`` data references hold: a file in the same folder, and its absolute path
    (tag 2) with colons for slashes."""
    name = path.name.encode()[:63]
    head = bytes(10) + b"\0" + bytes(27) + bytes(12) + bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16)
    text = str(path).replace("/", ":").encode()
    text += b"\0" * (len(text) % 2)
    return (
        head
        + struct.pack(">hh", 1, 1)
        + bytes(16)
        + struct.pack(">hH", 2, len(text))
        + text
        + struct.pack(">hH", -1, 0)
    )


def redirecting_movie(url: bytes) -> bytes:
    """A QuickTime movie that is nothing but a reference to another one (``rmra``)."""
    reference = atom(b"rdrf", bytes(4), b"url ", struct.pack(">I", len(url) + 1), url + b"\0")
    return atom(b"ftyp", b"qt  ", bytes(4), b"qt  ") + atom(b"moov", atom(b"rmra", atom(b"rmda", reference)))


def avi_with_playlist(playlist: bytes) -> bytes:
    """An AVI with a subtitle stream (``GAB2``) that holds a playlist where a subtitle should be."""
    stream = struct.pack("<4s4sIHHIIIIIIIIhhhh", b"txts", bytes(4), 0, 0, 0, 0, 1, 25, 0, 100, 0, 0, 0, 0, 0, 0, 0)
    header = struct.pack("<14I", 40_000, 0, 0, 0, 100, 0, 1, 0, 160, 96, 0, 0, 0, 0)
    strl = chunk(b"LIST", b"strl" + chunk(b"strh", stream) + chunk(b"strf", bytes(40)))
    name = "s".encode("utf-16-le") + b"\0\0"
    gab2 = b"GAB2\0" + struct.pack("<HI", 2, len(name)) + name + struct.pack("<HI", 4, len(playlist)) + playlist
    movi = chunk(b"LIST", b"movi" + chunk(b"00tx", gab2))
    return chunk(b"RIFF", b"AVI " + chunk(b"LIST", b"hdrl" + chunk(b"avih", header) + strl) + movi)


def pointers(secret: Path, url: str) -> Iterator[tuple[str, bytes]]:
    """Names and contents of files that point at the local file ``secret`` or at ``url``."""
    for number, target in enumerate((f"file://{secret}", str(secret), secret.name, url, f"concat:{secret}|{secret}")):
        hls = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{target}\n#EXT-X-ENDLIST\n"
        yield f"hls{number}.mp4", hls.encode()
        yield f"master{number}.mp4", f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=9\n{target}\n".encode()
        yield f"concat{number}.mp4", f"ffconcat version 1.0\nfile '{target}'\nduration 2\n".encode()
        yield f"gab{number}.avi", avi_with_playlist(hls.encode())
        yield f"url{number}.mov", reference_movie(target.encode() + b"\0")
        yield f"rmra{number}.mov", redirecting_movie(target.encode())
        mpd = (
            '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            'mediaPresentationDuration="PT2S"><Period><AdaptationSet mimeType="video/mp4"><Representation id="v" '
            f'bandwidth="9" codecs="avc1.42c00b"><BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>'
        )
        yield f"dash{number}.mp4", mpd.encode()
        asx = f'<ASX version="3.0"><Entry><Ref href="{target}"/></Entry></ASX>'
        yield f"asx{number}.wmv", asx.encode()
        svg = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink" width="96" height="96">'
        yield f"picture{number}.mp4", f'{svg}<image x:href="{target}" width="96" height="96"/></svg>'.encode()
    yield "alias.mov", reference_movie(alias(secret), b"alis")
    port = urlsplit(url).port
    sdp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} TCP/AVP 96\na=rtpmap:96 H264/90000\n"
    yield "session.mp4", sdp.encode()
    yield "rtsp.mp4", f"RTSPtextRTSP://127.0.0.1:{port}/a".encode()
