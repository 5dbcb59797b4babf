"""Receive announcements of switches: verify the signature, drop repetitions, do something, answer 204.

pip install standardwebhooks
WEBHOOK_SECRET=whsec_... python receiver.py 8080
"""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

LARGEST = 100_000
KNOWN = 10_000
webhook = Webhook(os.environ["WEBHOOK_SECRET"])
seen: OrderedDict[str, None] = OrderedDict()  # In production: a table with a unique key, which survives a restart.


def switched(data: dict) -> None:
    """Called once for each switch. The message is a hint: read the manifest before you act on it."""
    before = data["previous"] and data["previous"]["run_id"]
    print(f"{data['model']}@{data['channel']}: {before} -> {data['current']['run_id']}", flush=True)


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(min(int(self.headers["content-length"] or 0), LARGEST))
        try:
            message = webhook.verify(body, dict(self.headers))  # The signature, and the time: five minutes at most.
        except WebhookVerificationError:
            self.answer(401)
            return
        identity = self.headers["webhook-id"]
        if identity not in seen and message["type"] == "release.activated":
            switched(message["data"])  # Where this fails, answer 500: the message comes again, with the same id.
        seen[identity] = None
        while len(seen) > KNOWN:
            seen.popitem(last=False)
        self.answer(204)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver).serve_forever()
