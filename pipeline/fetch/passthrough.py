"""Sources that need no downloader: local files are used in place, files of fsspec are copied into the store."""

from __future__ import annotations

import contextlib
import errno
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote

import fsspec

from pipeline.errors import DownloadError, TransientDownloadError
from pipeline.fetch.addresses import Network, Reach, named_places
from pipeline.fetch.download_store import DownloadStore
from pipeline.fetch.provenance import as_plain_json
from pipeline.fetch.sniff import suffix_of
from pipeline.fetch.transfer import Watch
from pipeline.fetch.validators import Validators, of_details
from pipeline.runtime.folder import DISK_FULL_ERRNOS
from pipeline.runtime.hashing import sha256_of
from pipeline.runtime.masking import mask_secrets
from pipeline.runtime.waiting import counted_lock
from pipeline.schema import Fetched, stable_hash

BLOCK_BYTES = 1 << 20
CHANGING = "changing"
"""The error code of a file that is replaced while it is processed."""
FOLLOWS_OTHERS = frozenset({"reference"})
"""File systems of fsspec whose files can refer to any other files."""


@contextlib.contextmanager
def explained(name: str) -> Iterator[None]:
    """Raises errors of a file system as download errors. ``name``: the file, for messages."""
    try:
        yield
    except FileNotFoundError as error:
        raise DownloadError("missing_file", f"there is no file {name}") from error
    except IsADirectoryError as error:
        raise DownloadError("is_folder", f"{name} is a folder, not a file") from error
    except PermissionError as error:
        raise DownloadError("forbidden", f"{name} may not be read: {error.strerror or error}") from error
    except ImportError as error:
        raise DownloadError("missing_package", f"{name} needs a package that is not installed: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP):
            raise DownloadError("missing_file", f"{name} cannot be the path of a file: {error.strerror}") from error
        if error.errno in DISK_FULL_ERRNOS:
            message = f"{name} could not be written: {error.strerror}"
            raise TransientDownloadError("disk_full", message) from error
        raise TransientDownloadError("connection", f"{name} could not be read: {mask_secrets(str(error))}") from error


def local_path(url: str) -> Path:
    """The path of a link without a scheme, or with ``file://``."""
    name = url.removeprefix("file://")
    path = Path(name).absolute()
    # file:// links written by hand are often not percent-encoded: the path is tried as it is first
    return path if name == url or path.exists() else Path(unquote(name)).absolute()


def local_key(path: Path) -> str:
    """Key of a local file, from its path, size, inode, and the times of the last change of its content (mtime) and of its status (ctime).
    The first time can be set by programs, the second cannot. Raises OSError."""
    status = path.stat()
    times = status.st_mtime_ns, status.st_ctime_ns
    return stable_hash("local", path, status.st_size, *times, status.st_ino, length=40)


def key_of_link(url: str) -> str:
    """:func:`local_key` of a link without a scheme, or with ``file://``. Empty if the file cannot be found."""
    try:
        return local_key(local_path(url))
    except (OSError, ValueError):
        return ""


def use_local(url: str, store: DownloadStore) -> Fetched:
    """Uses a local file in place, and pins it. It is hashed again only if :func:`local_key` changed. Raises DownloadError."""
    path = local_path(url)
    name = repr(str(path))
    with explained(name):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError
        if not stat.S_ISREG(mode):
            raise DownloadError("not_a_file", f"{name} is a device or a pipe, not a file")
        key = local_key(path)
    with counted_lock(store.only_one(key)):
        if stored := store.find(key):
            return stored
        with explained(name):  # without the calls of the store, whose errors do not concern the source
            suffix_of(path)
            sha256 = sha256_of(path)
            if local_key(path) != key:
                raise TransientDownloadError(CHANGING, f"{name} was written to while it was read")
        provenance = as_plain_json({"title": path.stem, "extractor": "local", "fetched_url": mask_secrets(url)})
        return store.add_outside(key, path, sha256, provenance)


def copy_remote(
    url: str, folder: Path, watch: Watch, networks: Sequence[Network]
) -> tuple[Path, dict[str, Any], Validators]:
    """Copies a file of any fsspec file system into ``folder``; returns its path, provenance and validators.

    If http(s) is part of the chain, it may connect to what a plain link may: the public internet and ``networks``. Raises
    DownloadError.
    """
    target = folder / "media"
    with target.open("wb") as sink, _opened(url, networks) as (file_system, remote):
        validators = _copy(file_system, remote, sink, watch)
    provenance = {"title": Path(remote).stem, "extractor": "fsspec", "fetched_url": mask_secrets(url)}
    return target, as_plain_json(provenance), validators


def ask_remote(url: str, watch: Watch, networks: Sequence[Network]) -> Validators:
    """The file's current validators, without copying it. Raises DownloadError."""
    with _opened(url, networks) as (file_system, remote), watch.waiting():
        return of_details(file_system.info(remote))


@contextlib.contextmanager
def _opened(url: str, networks: Sequence[Network]) -> Iterator[tuple[Any, str]]:
    """The file system of a link, and the path in it. Errors of the block are raised as download errors."""
    name = mask_secrets(url)
    parts = url.split("::")
    schemes = {part.partition("://")[0].lower() for part in parts}
    if schemes & FOLLOWS_OTHERS:
        raise DownloadError(
            "unsupported_url", f"{name!r} is of a kind that refers to other files, which is not allowed"
        )
    web = [part for part in parts if part.lower().startswith(("http://", "https://"))]
    reach = Reach({place for part in web for place in named_places(part)}, networks)
    options = {scheme: _checked_options(reach) for scheme in schemes & {"http", "https"}}
    try:
        with explained(repr(name)):
            yield fsspec.core.url_to_fs(url, **options)
    except DownloadError as error:
        raise reach.refused or error from error


def _checked_options(reach: Reach) -> dict[str, Any]:
    """Options of fsspec's http file system by which each connection is checked before it is made, also after a redirect."""

    def checked_socket(address_info: Any) -> socket.socket:
        family, kind, protocol, _, place = address_info
        reach.check(place)
        return socket.socket(family, kind, protocol)

    async def get_client(loop: Any = None, **settings: Any) -> Any:
        import aiohttp  # noqa: PLC0415 - if it is missing, fsspec's error says so

        return aiohttp.ClientSession(connector=aiohttp.TCPConnector(socket_factory=checked_socket), **settings)

    return {"get_client": get_client, "skip_instance_cache": True}


def _copy(file_system: Any, remote: str, sink: IO[bytes], watch: Watch) -> Validators:
    with watch.waiting():
        info = file_system.info(remote)
    if info["type"] == "directory":
        raise IsADirectoryError
    watch.check_size(info.get("size"))
    with file_system.open(remote, "rb") as source:
        while True:
            with watch.waiting():
                block = source.read(BLOCK_BYTES)
            if not block:
                break
            sink.write(block)
            watch.count(len(block))
    return of_details(info)
