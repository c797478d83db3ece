"""Recognises what a file is by its first bytes: names and content types may be wrong."""

from __future__ import annotations

import codecs
from pathlib import Path

from pipeline.errors import DownloadError

HEAD_BYTES = 1024

_ATOMS = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"sidx", b"moof", b"pnot"}
_MAGIC = {
    b"OggS": ".ogg",
    b"FLV\x01": ".flv",
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11": ".wmv",
    b"\x00\x00\x01\xba": ".mpg",
    b"\x00\x00\x01\xb3": ".mpg",
    b"\x06\x0e\x2b\x34": ".mxf",
    b"YUV4MPEG2": ".y4m",
    b"GIF8": ".gif",
    b"fLaC": ".flac",
    b"ID3": ".mp3",
}
_OTHER = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf": "a 7z archive",
}
_BYTE_ORDER_MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def suffix_of(path: Path | str) -> str:
    """The suffix that fits the content, such as ``.mp4``. Empty if the content is not recognised.

    Raises DownloadError ``empty`` or ``not_media`` if the file cannot be a video.
    """
    with Path(path).open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        raise DownloadError("empty", "the file has zero bytes")
    if (suffix := _media(head)) is not None:
        return suffix
    for magic, name in _OTHER.items():
        if head.startswith(magic):
            raise DownloadError("not_media", f"not a video but {name}")
    if _is_text(head):
        shown = " ".join(head.decode("utf-8", "replace").split())[:60]
        begin = f", beginning with {shown!r}" if shown else " of blanks"
        raise DownloadError("not_media", f"not a video but {_kind_of_text(head)}{begin}")
    return ""


def _media(head: bytes) -> str | None:
    if head[4:8] in _ATOMS:
        return ".mov" if head[4:8] != b"ftyp" or head[8:12] == b"qt  " else ".mp4"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return ".webm" if b"webm" in head[:64] else ".mkv"
    if head.startswith(b"RIFF"):
        return ".avi" if head[8:12] == b"AVI " else ".wav"
    if len(head) > 188 and head[0] == head[188] == 0x47:
        return ".ts"
    return next((suffix for magic, suffix in _MAGIC.items() if head.startswith(magic)), None)


def _is_text(head: bytes) -> bool:
    if head.startswith(_BYTE_ORDER_MARKS):
        return True
    control = sum(byte < 32 and byte not in b"\t\n\r\f\x1b" for byte in head)
    if control:
        return False
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(head)
    except UnicodeDecodeError:
        # another 8-bit encoding, if it looks like markup
        return head.lstrip()[:1] in (b"<", b"{", b"[")
    return True


def _kind_of_text(head: bytes) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) or b"<html" in start:
        return "a web page"
    if start.startswith((b"{", b"[")):
        return "a JSON text"
    return "an XML text" if start.startswith(b"<") else "a text"
