"""The example of a receiver does what it promises, with what a worker sends."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

from tests.support.announcing import SECRET, MakePost, webhook
from tests.support.machine import free_port
from tests.support.processes import surroundings
from tests.support.receivers import Received, receiving
from tests.support.served import until

EXAMPLE = Path(__file__).parents[2] / "examples" / "announcements" / "receiver.py"


def test_the_example_receiver_verifies_and_drops_repetitions_and_forgeries(make_post: MakePost, tmp_path: Path) -> None:
    port = free_port()
    with receiving() as receiver:
        post = make_post(api=webhook(receiver))
        post.switch(1)
        post.switch(2)
        post.deliver()
        first, second = receiver.taken
    environment = surroundings(tmp_path, WEBHOOK_SECRET=SECRET)
    command = [sys.executable, str(EXAMPLE), str(port)]
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answer(port, first, body=b"{}") != 0, "the receiver", limit_seconds=30)
        statuses = [answer(port, one) for one in (first, first, second)]
        assert (statuses, answer(port, second, body=second.body.replace(b"latest", b"lotest"))) == ([204] * 3, 401)
    finally:
        process.terminate()
        process.wait()
    lines = (tmp_path / "out").read_text().splitlines()
    runs = [one.message["data"]["current"]["run_id"] for one in (first, second)]
    assert lines == [f"two_tower@latest: None -> {runs[0]}", f"two_tower@latest: {runs[0]} -> {runs[1]}"]


def answer(port: int, one: Received, *, body: bytes | None = None) -> int:
    """Send a message again; return the status, or 0 if no server listens."""
    data = one.body if body is None else body
    headers = {name: value for name, value in one.headers.items() if name.startswith(("webhook-", "content-type"))}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as found:
            return int(found.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
