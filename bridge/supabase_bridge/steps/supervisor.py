"""Run one command, and end it and all its processes when standard input ends. A program; it imports nothing of ours.

    python supervisor.py SECONDS PROGRAM [ARGUMENT ...]

The worker holds the other end of the pipe. So the command ends where the worker closes it, and where the worker dies.
Exit code: that of the command; 128 and the signal's number where a signal ended it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress


def main() -> int:
    grace_seconds, command = float(sys.argv[1]), sys.argv[2:]
    try:
        # In a session of its own: a signal to the group reaches every process that the command starts.
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)  # noqa: T201
        return 127
    threading.Thread(target=end_with_input, args=(process, grace_seconds), daemon=True).start()
    code = process.wait()
    send(process, signal.SIGKILL)  # What it left behind.
    return code if code >= 0 else 128 - code


def end_with_input(process: subprocess.Popen[bytes], grace_seconds: float) -> None:
    """Wait for the end of the input; then end the command, politely first."""
    while os.read(0, 1024):
        pass
    send(process, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(grace_seconds)
    send(process, signal.SIGKILL)


def send(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Send a signal to the command's session."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    sys.exit(main())
