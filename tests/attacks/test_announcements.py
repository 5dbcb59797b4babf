"""An announcement shall lead a worker into a private network, show a secret, or notify a whole channel."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from supabase_bridge.announce.deliveries import DeliveryState
from supabase_bridge.announce.senders import open_sender
from supabase_bridge.announce.texts import slack_message
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.settings.model import Settings
from tests.announce.test_texts import texts, with_data
from tests.support.announcing import SECRET, MakePost, webhook
from tests.support.commands import invoke
from tests.support.receivers import Answer, receiving
from tests.support.scene import files_below


@contextmanager
def listening() -> Iterator[tuple[int, list[bytes]]]:
    """Listen on this machine; yield the port, and what arrives there."""
    arrived: list[bytes] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def take() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with closing(connection):
                    connection.settimeout(5)
                    arrived.append(connection.recv(1_000))

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield server.getsockname()[1], arrived
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("allow_private", [False, True])
def test_a_name_that_is_resolved_to_this_machine_after_its_check_gets_not_one_byte(
    make_post: MakePost, monkeypatch: pytest.MonkeyPatch, allow_private: bool
) -> None:
    """DNS rebinding: the resolver's answer to the connection itself is the one that counts."""
    resolve = socket.getaddrinfo

    def rebound(host: Any, *arguments: Any, **more: Any) -> Any:
        return resolve("127.0.0.1" if host == "rebound.example" else host, *arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    with listening() as (port, arrived):
        address = f"https://rebound.example:{port}/hook"
        post = make_post(
            api={"url": address, "secret_env": "WEBHOOK_SECRET", "timeout": 1, "allow_private": allow_private}
        )
        post.switch(1)
        post.deliver()
        (row,) = post.rows(DeliveryState.PENDING)
        assert row.outcome is not None
        assert row.outcome.startswith("the address of the destination is refused: it leads to this machine")
    assert b"".join(arrived) == b""


def test_a_destination_s_redirect_into_the_private_network_is_not_followed(make_post: MakePost) -> None:
    with receiving() as receiver, receiving() as private:
        post = make_post(api=webhook(receiver))
        receiver.choose = lambda _: Answer(status=307, headers={"location": private.url})
        post.switch(1)
        post.deliver()
        (row,) = post.rows(DeliveryState.PENDING)
        assert (row.outcome, private.requests) == ("it answered 307; redirects are not followed", [])


@pytest.mark.parametrize(
    "text", ["<!channel>", "<!here|here>", "<@U123>", "<https://evil.example|Reset your password>", "&lt;!channel&gt;"]
)
def test_no_foreign_text_notifies_a_whole_slack_channel_or_hides_an_address(text: str) -> None:
    message = slack_message(
        with_data(model=text, release_notes=text, metrics={text: {"after": 1.0}}, previous={"run_id": text})
    )
    for one in texts(message):
        assert "<" not in one
        assert ">" not in one
        assert "&" not in one.replace("&lt;", "").replace("&gt;", "").replace("&amp;", "")
    assert "mrkdwn" not in json.dumps(message)


def test_the_secrets_of_destinations_are_in_no_log_database_repr_or_output(
    make_post: MakePost, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    hidden = "T0KEN-that-is-in-no-log"
    with receiving() as receiver:
        monkeypatch.setenv("SLACK_URL", f"http://127.0.0.1:{receiver.port}/{hidden}")
        monkeypatch.setenv("APPRISE_URL", f"json://127.0.0.1:{receiver.port}/{hidden}")
        caplog.set_level("DEBUG")
        post = make_post(api=webhook(receiver), slack={"slack_env": "SLACK_URL"}, other={"apprise_env": "APPRISE_URL"})
        receiver.choose = lambda number: Answer(status=500 if number < 3 else 204)
        post.switch(1)
        post.deliver()
        receiver.choose = lambda _: Answer(drops=True)
        post.make_due()
        post.deliver()
        (tmp_path / "supabase-bridge.toml").write_text(
            '[announce.slack]\nslack_env = "SLACK_URL"\n[announce.other]\napprise_env = "APPRISE_URL"\n'
        )
        said = [
            invoke("-v", "announcements", "test", name, "--home", tmp_path, environment={"SLACK_URL": address})
            for name, address in (("slack", f"http://127.0.0.1:{receiver.port}/{hidden}"), ("slack", f"x://{hidden}"))
        ]
        said.append(
            invoke(
                *("-v", "announcements", "test", "other", "--home", tmp_path),
                environment={"APPRISE_URL": f"json://127.0.0.1:{receiver.port}/{hidden}"},
            )
        )
        assert [one.code for one in said] == [1, 2, 1]
        senders = [open_sender(item) for item in post.settings.announce.values()]
        shown = [repr(post.settings), *(repr(vars(one)) for one in senders), *(one.out + one.err for one in said)]
        kept = [data.decode("latin-1") for data in files_below(tmp_path).values()]
        for text in (*shown, *kept, caplog.text):
            assert hidden not in text
            assert SECRET.removeprefix("whsec_") not in text


@pytest.mark.parametrize(
    "table",
    [
        {"slack": "https://hooks.slack.com/services/T0KEN"},
        {"url": "https://hooks.slack.com/services/T0KEN", "secret_env": "X"},
        {"url": "https://user:T0KEN@example.com/", "secret_env": "X"},
        {"url": "https://example.com/?key=T0KEN", "secret_env": "X"},
        {"apprise": "mailto://user:T0KEN@example.com"},
        {"url": "https://example.com/", "secret_env": "whsec_T0KEN/+=="},
    ],
    ids=["slack", "slack as url", "user", "query", "apprise", "secret itself"],
)
def test_a_secret_of_a_destination_in_the_settings_file_is_refused_unprinted(table: dict[str, str]) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ={}, announce={"api": table})
    assert "T0KEN" not in str(caught.value)


def test_a_secret_that_every_user_of_the_machine_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text(SECRET)
    path.chmod(0o644)
    announce = {"api": {"url": "https://example.com/", "secret_file": str(path)}}
    settings = Settings.load(home=tmp_path, environ={}, announce=announce)
    with pytest.raises(SettingsError, match="chmod 600"):
        open_sender(settings.announce["api"])
    path.chmod(0o600)
    open_sender(settings.announce["api"]).close()
