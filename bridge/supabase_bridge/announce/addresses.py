"""Which addresses an announcement may go to, as pure functions: https, and no private network."""

from __future__ import annotations

import ipaddress
from typing import TypeAlias
from urllib.parse import urlsplit

from supabase_bridge.announce.errors import AddressRefusedError
from supabase_bridge.core.errors import SettingsError

_Address: TypeAlias = "ipaddress.IPv4Address | ipaddress.IPv6Address"

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_LOOPBACK_NAMES = {"localhost", "ip6-localhost"}


def check_url(url: str, *, label: str) -> str:
    """Return a URL if it is https, or http on this machine. No message repeats it, because it may be a secret.

    Raises:
        SettingsError: it is none of both, or has a user or a fragment.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise SettingsError(label, "the address is no URL") from None
    if not host or parts.username is not None or parts.password is not None or parts.fragment:
        raise SettingsError(label, "expected an address like https://host/path, without user and fragment")
    if parts.scheme != "https" and not (parts.scheme == "http" and names_loopback(host)):
        raise SettingsError(label, "expected an address that begins with https:// (http:// only on this machine)")
    return url


def names_loopback(host: str) -> bool:
    """Return whether the host of a URL is this machine by its name or address; no resolver is asked."""
    if host.lower() in _LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_peer(host: str, peer: str, *, allow_private: bool) -> None:
    """Check the address at the other end of a connection, which counts more than an earlier answer of a resolver.

    Args:
        host: The host of the URL. One that names this machine may lead to it, and no other may.
        peer: The IP address at the other end of the connection.
        allow_private: Whether it may be in a private network; a link-local one, such as that of a cloud's metadata, may
            not.

    Raises:
        AddressRefusedError: an announcement must not go there.
    """
    found = [ipaddress.ip_address(peer.partition("%")[0])]
    found += _embedded(found[0])
    if names_loopback(host):
        if found[-1].is_loopback:
            return
        raise AddressRefusedError("a name of this machine leads to another one")
    if any(one.is_loopback or one.is_link_local or one.is_multicast or one.is_unspecified for one in found):
        raise AddressRefusedError("it leads to this machine, or to no single machine of a network")
    if not (allow_private or all(one.is_global for one in found)):
        raise AddressRefusedError("it leads into a private network; set allow_private = true if it should")


def _embedded(address: _Address) -> list[_Address]:
    """The IPv4 address inside an IPv6 address that stands for it, if there is one."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found = address.ipv4_mapped or address.sixtofour
    if found is None and address.teredo is not None:
        found = address.teredo[1]
    if found is None and address in _NAT64:
        found = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return [] if found is None else [found]
