"""Limits downloads to the public internet, networks that the user allows, and private addresses only if the link itself contains the IP
address.

The address of each connection is checked, not its host name: a name may resolve to another address each time. An audit hook checks
every connection of this process; the connections of ffmpeg go through :class:`CheckingProxy`.
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

    If an IPv6 address contains an IPv4 address (mapped, 6to4, NAT64), that one must be public as well.
    """
    if isinstance(address, ipaddress.IPv6Address):
        embedded = address.ipv4_mapped or address.sixtofour
        if embedded is None and address in _NAT64:
            embedded = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if embedded is not None and not is_public(embedded):
            return False
        if address.ipv4_mapped is not None:
            return True
    return address.is_global and not address.is_multicast


def host_and_port(url: str) -> tuple[str, int] | None:
    """Host and port of a URL. None: it has no host, or is invalid."""
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    return (host, port if port is not None else DEFAULT_PORTS.get(parts.scheme, 0)) if host else None


def named_places(url: str) -> set[tuple[str, int]]:
    """Addresses and ports off the public internet that a link contains: as an IP address, or as ``localhost``.

    A link with another host name contains none, whatever the name resolves to.
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
    """Addresses and ports that the hosts of these URLs (of proxies) resolve to. Hosts that cannot be resolved are left out."""
    places = set()
    for url in urls:
        if (place := host_and_port(url)) is not None:
            with contextlib.suppress(OSError):
                places |= {(entry[4][0], place[1]) for entry in socket.getaddrinfo(*place, 0, socket.SOCK_STREAM)}
    return {(str(host), port) for host, port in places}


class RefusedAddressError(OSError):
    """A connection was refused. It is an OSError, so that callers try the host's next address."""


class Reach:
    """The addresses that one download may connect to: the public internet, ``places`` and ``networks``.

    ``places``: allowed addresses with their ports. ``networks``: networks that are allowed as a whole. ``refused``: the error of the
    last refused connection.
    """

    def __init__(self, places: Iterable[tuple[str, int]], networks: Sequence[Network]) -> None:
        self._places = frozenset(places)
        self._networks = tuple(networks)
        self.refused: DownloadError | None = None

    def check(self, place: Any) -> None:
        """Raises RefusedAddressError for an address of :mod:`socket` that is not allowed. Host names and Unix sockets never are."""
        host, port = (str(place[0]), int(place[1])) if isinstance(place, tuple) and len(place) >= 2 else (str(place), 0)
        address = _address(host)
        if address is not None:
            mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
            if is_public(address) or {(str(address), port), (str(mapped), port)} & self._places:
                return
            if any((mapped or address) in network or address in network for network in self._networks):
                return
        self.refused = DownloadError(
            "private_address",
            f"refused to connect to {host} (port {port}), which is not on the public internet and not in the source's link. "
            "To allow it, add its network to download.allow_networks",
        )
        raise RefusedAddressError(str(self.refused))

    @contextlib.contextmanager
    def enforced(self) -> Iterator[None]:
        """Refuses connections of this thread that are not allowed, while the block runs."""
        _install_hook()
        token = _reach.set(self)
        try:
            yield
        finally:
            _reach.reset(token)

    def connect(self, host: str, port: int, timeout_seconds: float) -> socket.socket:
        """A connection to the first address of ``host`` that is allowed and accepts it. Raises OSError."""
        last_error: OSError = OSError(f"{host} has no address")
        for family, kind, protocol, _, place in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
            connection = socket.socket(family, kind, protocol)
            try:
                self.check(place)
                connection.settimeout(timeout_seconds)
                connection.connect(place)
                return connection
            except OSError as error:
                connection.close()
                last_error = error
        raise last_error


_reach: ContextVar[Reach | None] = ContextVar("_reach", default=None)


@functools.cache
def _install_hook() -> None:
    """Adds an audit hook, which Python calls with the address before each connection. It cannot be removed."""

    def check_connection(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and (reach := _reach.get()) is not None:
            reach.check(arguments[1])

    sys.addaudithook(check_connection)


def _address(host: str) -> Address | None:
    try:
        return ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
