"""Where downloads may connect to: the public internet, and nothing else that the user has not named.

The check is made on the address of the very connection, not on a name: a name may lead to another address each time it is
looked up. In this process an audit hook sees every connection; what ffmpeg fetches goes through :class:`CheckingProxy`.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from pipeline.errors import DownloadError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

DEFAULT_PORTS = {"http": 80, "https": 443, "socks4": 1080, "socks4a": 1080, "socks5": 1080, "socks5h": 1080}
LOCALHOST = ("127.0.0.1", "::1")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet: not loopback, private, link-local, shared, multicast or reserved.

    Of an IPv6 address that carries one of IPv4 (mapped, 6to4, NAT64) the one inside counts as well.
    """
    if isinstance(address, ipaddress.IPv6Address):
        inside = address.ipv4_mapped or address.sixtofour
        if inside is None and address in _NAT64:
            inside = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inside is not None and not is_public(inside):
            return False
        if address.ipv4_mapped is not None:
            return True
    return address.is_global and not address.is_multicast


def host_and_port(url: str) -> tuple[str, int] | None:
    """Host and port of a URL. None: it names none."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return (host, port if port is not None else DEFAULT_PORTS.get(parts.scheme, 0)) if host else None


def named_places(url: str) -> set[tuple[str, int]]:
    """The addresses off the public internet that a link names itself, with their port: in figures, or as ``localhost``.

    A name names none, wherever it leads.
    """
    place = host_and_port(url)
    if place is None:
        return set()
    host, port = place
    if host == "localhost":
        return {(address, port) for address in LOCALHOST}
    address = _address(host)
    return {(str(address), port)} if address is not None and not is_public(address) else set()


def resolved_places(urls: Iterable[str]) -> set[tuple[str, int]]:
    """The addresses that these URLs (of proxies) lead to now. What cannot be looked up is left out."""
    found = set()
    for url in urls:
        if (place := host_and_port(url)) is not None:
            with contextlib.suppress(OSError):
                found |= {(entry[4][0], place[1]) for entry in socket.getaddrinfo(*place, 0, socket.SOCK_STREAM)}
    return {(str(host), port) for host, port in found}


class RefusedAddressError(OSError):
    """A connection was not made. An OSError, so that whoever makes it goes on to the host's next address."""


class Reach:
    """What one download may connect to.

    ``places``: addresses and ports that are allowed wherever they lie. ``networks``: networks that are allowed as a whole.
    ``refused`` is the error of the last connection that was not allowed.
    """

    def __init__(self, places: Iterable[tuple[str, int]], networks: Sequence[Network]) -> None:
        self._places = frozenset(places)
        self._networks = tuple(networks)
        self.refused: DownloadError | None = None

    def check(self, place: Any) -> None:
        """Raises RefusedAddressError for an address of :mod:`socket` that is not allowed: also a name, and a Unix socket."""
        host, port = (str(place[0]), int(place[1])) if isinstance(place, tuple) and len(place) >= 2 else (str(place), 0)
        address = _address(host)
        if address is not None:
            plain = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
            if is_public(address) or {(str(address), port), (str(plain), port)} & self._places:
                return
            if any((plain or address) in network or address in network for network in self._networks):
                return
        self.refused = DownloadError(
            "private_address",
            f"refused to connect to {host} (port {port}), which is not on the public internet: the source's link does not "
            "name this address itself. If it is wanted, put its network into download.allow_networks",
        )
        raise RefusedAddressError(str(self.refused))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """While the block runs, this thread makes no connection that is not allowed."""
        _install_hook()
        token = _reach.set(self)
        try:
            yield
        finally:
            _reach.reset(token)

    def connect(self, host: str, port: int, timeout_seconds: float) -> socket.socket:
        """A connection to the first address of ``host`` that is allowed and answers. Raises OSError."""
        last: OSError = OSError(f"{host} has no address")
        for family, kind, protocol, _, place in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
            made = socket.socket(family, kind, protocol)
            try:
                self.check(place)
                made.settimeout(timeout_seconds)
                made.connect(place)
                return made
            except OSError as error:
                made.close()
                last = error
        raise last


_reach: ContextVar[Reach | None] = ContextVar("_reach", default=None)


@functools.cache
def _install_hook() -> None:
    """Python tells its audit hooks of each connection, with the address, before it is made. A hook stays for good."""

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and (reach := _reach.get()) is not None:
            reach.check(arguments[1])

    sys.addaudithook(look)


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
