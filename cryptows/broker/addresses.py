"""Whose address a client has, behind proxies, and which addresses count as one.

`X-Forwarded-For` is believed only where a trusted proxy wrote it: from the right, hop by hop, as
long as the hop that handed it on is trusted. What stands further left anyone may have made up.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

MAX_TEXT = 64  # characters; the longest address has 45, and an interface's name 15
UNIX = "unix"  # the address of whoever came over a Unix socket and no proxy says more


def client_address(peer: str | None, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """Return the address that limits and logs go by.

    `peer` is the socket's other end without the port, None or empty for a Unix socket; such a peer
    is a proxy, and trusted, since the file's permissions say who may connect. `forwarded` holds
    the `X-Forwarded-For` headers in order. A value that is no address ends the walk.
    """
    here = _parse(peer) if peer else None
    if peer and here is None:
        return peer
    if here is None or (trusted and _within(here, trusted)):
        hops = [hop for value in forwarded for hop in value.split(",")]
        while hops:
            hop = _parse_hop(hops.pop())
            if hop is None:
                break
            here = hop
            if not _within(here, trusted):
                break
    return UNIX if here is None else str(here)


def is_proxy(peer: str | None, trusted: Sequence[Network]) -> bool:
    """Whether a socket's other end stands for many clients: a trusted proxy, or a Unix socket."""
    if not peer:
        return True
    here = _parse(peer) if trusted else None
    return here is not None and _within(here, trusted)


@functools.lru_cache(maxsize=1024)  # bounded: addresses come from clients
def counted_as(address: str) -> str:
    """Return what an address counts as: an IPv6 client commands a whole /64, so that counts."""
    if ":" not in address:
        return address
    parsed = _parse(address)
    if not isinstance(parsed, ipaddress.IPv6Address):
        return address
    return str(ipaddress.IPv6Network((int(parsed) >> 64 << 64, 64)))


def _parse(text: str) -> Address | None:
    return _parse_short(text) if len(text) <= MAX_TEXT else None


@functools.lru_cache(maxsize=1024)  # bounded, as addresses come from clients; saves 8 us
def _parse_short(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])  # without the interface
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _parse_hop(text: str) -> Address | None:
    """Read one hop: an address, perhaps in brackets, perhaps with a port."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or (port and not _is_port(port)):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(":" + port):
            return None
    return _parse(text)


def _is_port(text: str) -> bool:
    return text[0] == ":" and text[1:].isascii() and text[1:].isdigit() and len(text) <= 6


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in network for network in networks)
