"""Send one message to one destination: a signed webhook, Slack's incoming webhook, or a service of Apprise's.

Source: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Protocol

import httpx
from pydantic import SecretStr

from supabase_bridge.announce.addresses import check_peer, check_url
from supabase_bridge.announce.errors import AddressRefusedError, DeliveryError
from supabase_bridge.announce.texts import plain_message, slack_message
from supabase_bridge.core.announcement import Announcement, AnnouncementKind, identity
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.settings.announce import Destination, Service
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.http import BoundedTransport

_PREFIX = "whsec_"
_SHORTEST_SECRET = 16
_GONE = 410
_SECRETS = 2


class Sender(Protocol):
    """Sends messages to one destination. Thread-safe."""

    def send(self, message_id: str, body: str) -> None:
        """Send a message once.

        Args:
            body: The JSON text of an announcement.

        Raises:
            DeliveryError: the destination did not take it.
            AddressRefusedError: its address leads where no announcement may go.
        """

    def close(self) -> None:
        """Close its connections."""


def open_sender(destination: Destination) -> Sender:
    """Read the secrets of a destination, and return its sender. Nothing is connected yet.

    Raises:
        SettingsError: a secret is missing or malformed, or the address is not allowed.
        ModuleNotFoundError: the destination needs Apprise, and the extra `announce` is not installed.
    """
    label, source = destination.label, destination.address_source
    address = SecretStr(destination.address or "") if source is None else source.read(label)
    if destination.service is Service.APPRISE:
        return AppriseSender(address, label=label)
    check_url(address.get_secret_value(), label=label)
    post = _Post(address, timeout=destination.timeout, allow_private=destination.allow_private)
    if destination.service is Service.SLACK:
        return SlackSender(post)
    assert destination.secret_source is not None  # noqa: S101 - the settings refuse a webhook without one
    return WebhookSender(post, read_secrets(destination.secret_source.read(label), label=label))


def check_destinations(settings: Settings) -> None:
    """Check that every destination of the settings can be used; nothing is connected.

    Raises:
        SettingsError, ModuleNotFoundError: see `open_sender`.
    """
    for destination in settings.announce.values():
        open_sender(destination).close()


def send_test(settings: Settings, name: str) -> None:
    """Send a test message to a destination of the settings, once.

    Raises:
        SettingsError: the settings have no such destination, or it cannot be used.
        DeliveryError, AddressRefusedError: see `Sender.send`.
    """
    if (destination := settings.announce.get(name)) is None:
        known = ", ".join(sorted(settings.announce)) or "none"
        raise SettingsError(f"[announce.{name}]"[:80], f"the settings have no such destination; there are: {known}")
    now = datetime.now(timezone.utc)
    data = {"destination": name}
    test = Announcement(id=identity(name, now.isoformat()), kind=AnnouncementKind.TEST, time=now, data=data)
    with closing(open_sender(destination)) as sender:
        try:
            sender.send(test.id, test.to_json())
        except DeliveryError as error:
            raise DeliveryError(f"{name} did not take the test message: {error}") from error


class WebhookSender:
    """Sends messages as Standard Webhooks: signed with each of the secrets."""

    def __init__(self, post: _Post, secrets: Sequence[bytes]) -> None:
        self._post = post
        self._secrets = secrets

    def send(self, message_id: str, body: str) -> None:
        """See `Sender.send`; the time that is signed is that of this attempt."""
        now, data = str(int(datetime.now(timezone.utc).timestamp())), body.encode()
        signatures = " ".join(signature(secret, message_id, now, data) for secret in self._secrets)
        self._post(data, {"webhook-id": message_id, "webhook-timestamp": now, "webhook-signature": signatures})

    def close(self) -> None:
        """See `Sender.close`."""
        self._post.close()


class SlackSender:
    """Sends messages to an incoming webhook of Slack's."""

    def __init__(self, post: _Post) -> None:
        self._post = post

    def send(self, message_id: str, body: str) -> None:  # noqa: ARG002 - Slack has no place for it
        """See `Sender.send`."""
        self._post(json.dumps(slack_message(body)).encode(), {})

    def close(self) -> None:
        """See `Sender.close`."""
        self._post.close()


class AppriseSender:
    """Sends messages through Apprise, which has its own time limits and gives no reason for a failure."""

    def __init__(self, address: SecretStr, *, label: str) -> None:
        # They write addresses with their tokens to their logs; urllib3 does in its details only.
        logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
        logging.getLogger("urllib3.connectionpool").setLevel(logging.WARNING)
        # An extra: it brings 26 MB.
        import apprise

        self._apprise = apprise.Apprise()
        if not all(self._apprise.add(one) for one in address.get_secret_value().split()):
            raise SettingsError(label, "Apprise does not understand the address; see https://github.com/caronc/apprise")

    def send(self, message_id: str, body: str) -> None:  # noqa: ARG002 - Apprise has no place for it
        """See `Sender.send`."""
        title, text = plain_message(body)
        if not self._apprise.notify(title=title, body=text, body_format="text"):
            raise DeliveryError("the service did not take it, or did not answer (Apprise names no reason)")

    def close(self) -> None:
        """See `Sender.close`; each message has connections of its own."""


class _Post:
    """Makes POST requests to one address: without redirects, in bounded time, and never into a private network."""

    def __init__(self, address: SecretStr, *, timeout: timedelta, allow_private: bool) -> None:
        self._address = address
        self._transport = BoundedTransport(timeout, check_peer=partial(check_peer, allow_private=allow_private))

    def __call__(self, data: bytes, headers: Mapping[str, str]) -> None:
        request = httpx.Request(
            "POST",
            self._address.get_secret_value(),
            content=data,
            headers={**headers, "content-type": "application/json", "user-agent": "mlflow-supabase-bridge"},
        )
        try:
            answer = self._transport.handle_request(request)
            answer.close()
        except AddressRefusedError:
            raise
        except httpx.TimeoutException:
            raise DeliveryError("it did not answer in time") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            # No text of these errors is kept: some repeat parts of the address.
            raise DeliveryError(f"it cannot be reached ({type(error).__name__})") from None
        if not answer.is_success:
            after = _retry_after(answer.headers.get("retry-after"))
            hint = "; redirects are not followed" if answer.is_redirect else ""
            raise DeliveryError(
                f"it answered {answer.status_code}{hint}", retry_after=after, gone=answer.status_code == _GONE
            )

    def close(self) -> None:
        self._transport.close()


def signature(secret: bytes, message_id: str, timestamp: str, data: bytes) -> str:
    """Return the signature of a message as the header `webhook-signature` has it."""
    signed = f"{message_id}.{timestamp}.".encode() + data
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def read_secrets(text: SecretStr, *, label: str) -> Sequence[bytes]:
    """Read one signing secret, or two separated by a space while one replaces the other: `whsec_<base64>`.

    Raises:
        SettingsError: it has another form.
    """
    found: list[bytes] = []
    for item in text.get_secret_value().split():
        try:
            found.append(base64.b64decode(item.removeprefix(_PREFIX), validate=True))
        except (binascii.Error, ValueError):
            found.append(b"")
        if not item.startswith(_PREFIX) or len(found[-1]) < _SHORTEST_SECRET:
            problem = "expected a signing secret: whsec_ and the base64 of 24 random bytes or more"
            raise SettingsError(label, f"{problem} (make one: echo whsec_$(openssl rand -base64 32))")
    if len(found) > _SECRETS:
        raise SettingsError(label, "expected one signing secret, or two while one replaces the other")
    return found


def _retry_after(text: str | None) -> timedelta | None:
    """The pause that a destination asks for, as seconds or as a time; None for any other text."""
    if text is None:
        return None
    try:
        if text.strip().isdecimal():
            return timedelta(seconds=min(int(text), 10**9))
        asked = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    if asked.tzinfo is None:
        return None
    return max(asked - datetime.now(timezone.utc), timedelta(0))
