"""Whose address a client has behind proxies, and which count as one."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryptows.broker.addresses import UNIX, Network, client_address, counted_as

TRUSTED: list[Network] = [
    ipaddress.ip_network("10.0.0.0/8"),
    ipaddress.ip_network("192.0.2.7/32"),
    ipaddress.ip_network("fd00::/8"),
]


def test_without_proxies_the_peer_is_the_client_whatever_the_header_says():
    assert client_address("198.51.100.1", ["203.0.113.9"], []) == "198.51.100.1"
    assert client_address("198.51.100.1", ["203.0.113.9"], TRUSTED) == "198.51.100.1"


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ([], "10.0.0.1"),
        (["203.0.113.9"], "203.0.113.9"),
        (["203.0.113.9, 10.0.0.2"], "203.0.113.9"),
        (["203.0.113.9", "10.0.0.2"], "203.0.113.9"),
        (["1.1.1.1, 203.0.113.9, 192.0.2.7"], "203.0.113.9"),
        (["1.1.1.1", "203.0.113.9 ,10.0.0.2"], "203.0.113.9"),
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        (["203.0.113.9:4711"], "203.0.113.9"),
        (['"203.0.113.9:4711"'], "203.0.113.9"),
        (["2001:db8::1"], "2001:db8::1"),
        (["2001:DB8:0::1"], "2001:db8::1"),
        (["[2001:db8::1]"], "2001:db8::1"),
        (["[2001:db8::1]:4711"], "2001:db8::1"),
        (["::ffff:203.0.113.9"], "203.0.113.9"),
        (["203.0.113.9, ::ffff:10.0.0.2"], "203.0.113.9"),
        (["203.0.113.9, fd00::2"], "203.0.113.9"),
        (["fe80::1%eth0"], "fe80::1"),
    ],
)
def test_the_client_is_the_rightmost_hop_that_is_no_trusted_proxy(forwarded, client):
    assert client_address("10.0.0.1", forwarded, TRUSTED) == client


@pytest.mark.parametrize(
    "malformed",
    [
        "",
        "unknown",
        "_hidden",
        "203.0.113",
        "203.0.113.256",
        "203.0.113.9:",
        "203.0.113.9:x",
        "203.0.113.9:123456",
        "203.0.113.9:²",
        "[2001:db8::1",
        "[2001:db8::1]x",
        "[2001:db8::1]:",
        "[2001:db8::1]4711",
        "::1::",
        "for=203.0.113.9",
        "203.0.113.9;",
        "fe80::1%" + "x" * 60,
    ],
)
def test_a_value_that_is_no_address_ends_the_walk(malformed):
    assert client_address("10.0.0.1", [malformed], TRUSTED) == "10.0.0.1"
    assert client_address("10.0.0.1", [f"1.1.1.1, {malformed}, 10.0.0.2"], TRUSTED) == "10.0.0.2"


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        ("::ffff:198.51.100.1", "198.51.100.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("2001:DB8::0:1", "2001:db8::1"),
        ("no address", "no address"),
    ],
)
def test_the_peer_is_written_in_one_way(peer, client):
    assert client_address(peer, [], []) == client


def test_a_mapped_proxy_is_trusted_as_well():
    assert client_address("::ffff:10.0.0.1", ["203.0.113.9"], TRUSTED) == "203.0.113.9"


@pytest.mark.parametrize("peer", [None, ""])
def test_a_peer_on_a_unix_socket_is_a_proxy(peer):
    assert client_address(peer, [], TRUSTED) == UNIX
    assert client_address(peer, ["203.0.113.9"], []) == "203.0.113.9"
    assert client_address(peer, ["1.1.1.1, 203.0.113.9"], []) == "203.0.113.9"
    assert client_address(peer, ["203.0.113.9, 10.0.0.1"], TRUSTED) == "203.0.113.9"
    assert client_address(peer, ["unknown"], TRUSTED) == UNIX


ADDRESSES = st.one_of(
    st.ip_addresses(network="10.0.0.0/8"),
    st.ip_addresses(network="198.51.100.0/24"),
    st.ip_addresses(v=6),
)


@given(
    peer=ADDRESSES,
    hops=st.lists(st.one_of(ADDRESSES.map(str), st.just("unknown")), max_size=6),
    data=st.data(),
)
def test_the_walk_ends_at_the_same_hop_as_a_naive_one(peer, hops, data):
    cut = data.draw(st.integers(0, len(hops)))
    headers = [", ".join(part) for part in (hops[:cut], hops[cut:]) if part]

    chain = [str(peer), *reversed(hops)]
    expected = chain[0]
    for hop, further in zip(chain, [*chain[1:], None], strict=True):
        expected = hop
        trusted = any(ipaddress.ip_address(hop) in network for network in TRUSTED)
        if not trusted or further in (None, "unknown"):
            break

    assert client_address(str(peer), headers, TRUSTED) == _plain(expected)


def _plain(text: str) -> str:
    address = ipaddress.ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


@given(st.one_of(st.text(), st.none()), st.lists(st.text(), max_size=3))
def test_any_text_at_all_gives_some_address(peer, forwarded):
    assert client_address(peer, forwarded, TRUSTED)


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("::ffff:203.0.113.9", "::ffff:203.0.113.9"),
        (UNIX, UNIX),
        ("no: address", "no: address"),
    ],
)
def test_the_addresses_of_one_ipv6_subnet_count_as_one(address, counted):
    assert counted_as(address) == counted
