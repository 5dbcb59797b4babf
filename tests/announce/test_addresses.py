"""Where an announcement may go: https, or this machine by its name, and no private network unless it is allowed."""

from __future__ import annotations

import pytest

from supabase_bridge.announce.addresses import check_peer, check_url
from supabase_bridge.announce.errors import AddressRefusedError
from supabase_bridge.core.errors import SettingsError


@pytest.mark.parametrize(
    "url", ["https://example.com/hook?a=b", "http://localhost:80/x", "http://127.0.0.1/", "http://[::1]:8080/x"]
)
def test_https_and_this_machine_are_accepted(url: str) -> None:
    assert check_url(url, label="x") == url


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "http://127.0.0.1.example.com/",
        "http://10.0.0.1/",
        "ftp://example.com/",
        "https://user:password-1@example.com/",
        "https:///path",
        "https://[::1/",
        "https://example.com:99999/",
        "https://example.com/#fragment",
        "",
    ],
)
def test_any_other_address_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_url(url, label="[announce.api]")
    assert "example.com" not in str(caught.value)
    assert "password-1" not in str(caught.value)


@pytest.mark.parametrize("peer", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_a_public_address_is_accepted(peer: str) -> None:
    check_peer("example.com", peer, allow_private=False)


@pytest.mark.parametrize("peer", ["10.1.2.3", "192.168.0.9", "172.16.0.1", "100.64.0.1", "fd00::1", "::ffff:10.0.0.1"])
def test_a_private_address_needs_the_setting(peer: str) -> None:
    with pytest.raises(AddressRefusedError, match="allow_private"):
        check_peer("example.com", peer, allow_private=False)
    check_peer("example.com", peer, allow_private=True)


@pytest.mark.parametrize("allow_private", [False, True])
@pytest.mark.parametrize(
    "peer",
    [
        *("127.0.0.1", "127.8.9.1", "::1", "::", "169.254.169.254", "fe80::1%eth0", "224.0.0.1", "ff02::1"),
        "0.0.0.0",  # noqa: S104 - no server listens there
        *("::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1", "64:ff9b::a9fe:a9fe"),
    ],
)
def test_neither_this_machine_nor_a_cloud_s_metadata_is_reached_under_another_name(
    peer: str, allow_private: bool
) -> None:
    with pytest.raises(AddressRefusedError, match="this machine, or to no single machine"):
        check_peer("example.com", peer, allow_private=allow_private)


def test_a_name_of_this_machine_leads_to_no_other_one() -> None:
    check_peer("localhost", "::1", allow_private=False)
    with pytest.raises(AddressRefusedError, match="leads to another one"):
        check_peer("localhost", "93.184.216.34", allow_private=True)
