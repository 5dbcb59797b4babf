"""Slack and Apprise get a message for people; a settings table is refused where it is not clear."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import SecretStr

from supabase_bridge.announce.senders import open_sender, read_secrets
from supabase_bridge.core.announcement import AnnouncementKind
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.settings.announce import Service
from supabase_bridge.settings.model import Settings
from tests.support.announcing import MakePost
from tests.support.receivers import receiving


def test_slack_and_apprise_get_a_message_for_people(make_post: MakePost, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as slack, receiving() as other:
        monkeypatch.setenv("SLACK_URL", slack.url)
        monkeypatch.setenv("APPRISE_URL", f"json://127.0.0.1:{other.port}/x")
        post = make_post(slack={"slack_env": "SLACK_URL"}, other={"apprise_env": "APPRISE_URL"})
        entry = post.switch(1)
        post.deliver()
        title = f"two_tower: latest is {entry.current.run_id} (v1)"
        (one,) = slack.taken
        assert (one.message["text"], len(one.message["blocks"])) == (title, 3)
        (one,) = other.taken
        assert one.message["title"] == title
        assert f"now: {entry.current.run_id} (v1)" in one.message["message"]


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({}, "expected one address"),
        ({"url": "https://a.example/", "slack_env": "X", "secret_env": "Y"}, "expected one address"),
        ({"url": "https://a.example/"}, "a webhook is signed: set secret_env or secret_file"),
        ({"slack_env": "X", "secret_env": "Y"}, "only a webhook"),
        ({"slack_env": "X", "slack_file": "/y"}, "set beside slack_file"),
        ({"slack_env": "X", "models": "two_tower"}, "expected a list of texts"),
        ({"slack_env": "X", "channels": ["No channel"]}, "cannot be a channel"),
        ({"slack_env": "X", "events": ["release.gone"]}, "no such event 'release.gone'; there are release.activated"),
        ({"slack_env": "X", "timeout": 31}, "30 at most"),
        ({"slack_env": "X", "allow_private": "yes"}, "expected true or false"),
        ({"slack_env": "X", "chanels": ["latest"]}, "no such field"),
        ({"slack_env": "no variable"}, "expected the name of an environment variable"),
    ],
)
def test_an_unclear_destination_is_refused(table: dict[str, Any], problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        Settings.load(environ={}, announce={"api": table})


def test_a_destination_has_the_documented_defaults() -> None:
    table = {"url": "https://a.example/", "secret_env": "X"}
    item = Settings.load(environ={}, announce={"api": table}).announce["api"]
    assert (item.service, item.kinds) == (Service.WEBHOOK, frozenset({AnnouncementKind.ACTIVATED}))
    assert (item.timeout.total_seconds(), item.allow_private) == (10, False)
    assert item.wants(AnnouncementKind.ACTIVATED, "any", "any")
    assert not item.wants(AnnouncementKind.FAILED, "any", None)


@pytest.mark.parametrize("text", ["", "whsec_", "whsec_AAAA", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "whsec_?" + "A" * 31])
def test_a_secret_that_is_none_is_refused_unprinted(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_secrets(SecretStr(f"whsec_{'A' * 32} {text or 'x'}"), label="[announce.api]")
    assert "AAAA" not in str(caught.value)


def test_no_address_is_opened_over_plain_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACK_URL", "http://slack.example/")
    settings = Settings.load(environ={}, announce={"slack": {"slack_env": "SLACK_URL"}})
    with pytest.raises(SettingsError, match="begins with https"):
        open_sender(settings.announce["slack"])
