"""Measure the mirror of a 54 + 54 MB release against five `supabase storage cp` commands of Supabase's command line.

    python -m benchmarks.official_client [--rounds 5] [--limit 4.0] [--command supabase]

The command is that of the npm package `supabase`; it sends to a local API only, on the port of a config.toml that the
benchmark writes. They take turns. Exit code 1: the median of the mirror is less than the limit times faster; 2: the
command is not installed, or SUPABASE_URL names no local API. With SUPABASE_URL the command needs
SUPABASE_AUTH_JWT_SECRET too.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.release import medians_ms, placed, release_files
from benchmarks.target import BUCKET, Target, target

LIMIT_SECONDS = 300
FOR_THE_SIMULATOR = "any secret will do for the simulator, if it is long enough"
"""The command requires it, and signs nothing with it, because it has the key."""


def main(arguments: Sequence[str] | None = None) -> int:
    summary, _, rest = __doc__.partition("\n")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.official_client", description=summary, epilog=rest)
    parser.add_argument("--rounds", type=int, default=5, help="releases of each kind (default: 5)")
    parser.add_argument("--limit", type=float, default=4.0, help="lowest ratio that passes (default: 4.0)")
    parser.add_argument("--command", default="supabase", help="the command or its path (default: supabase)")
    options = parser.parse_args(arguments)
    command = shutil.which(options.command)
    if command is None:
        sys.stderr.write(f"{options.command} is not installed: npm install supabase, and name it with --command\n")
        return 2
    with tempfile.TemporaryDirectory() as directory, target() as place:
        if urlsplit(place.url).hostname not in {"127.0.0.1", "localhost"}:
            sys.stderr.write("SUPABASE_URL names no local API, and the command sends to nothing else\n")
            return 2
        files = release_files(Path(directory, "source"))
        store = place.store(uploads=Path(directory, "uploads"))
        theirs = _copied(command, place, files, Path(directory, "project"))
        ours = placed(store, Path(directory, "source"), Path(directory, "scratch"))
        theirs_ms, ours_ms = medians_ms([theirs, ours], store, rounds=options.rounds)
        store.close()
    ratio = theirs_ms / ours_ms
    print(
        f"54 + 54 MB release to {place}: five commands {theirs_ms:.0f} ms, ours {ours_ms:.0f} ms, {ratio:.1f} x faster "
        f"(limit {options.limit:.1f})"
    )
    return int(ratio < options.limit)


def _copied(command: str, place: Target, files: Mapping[str, Path], project: Path) -> Callable[[str], None]:
    (project / "supabase").mkdir(parents=True)
    port = urlsplit(place.url).port or 80
    config = f'project_id = "benchmark"\n\n[api]\nenabled = true\nport = {port}\n'
    (project / "supabase" / "config.toml").write_text(config)
    environment = {
        **os.environ,
        "HOME": str(project),
        "SUPABASE_AUTH_JWT_SECRET": os.environ.get("SUPABASE_AUTH_JWT_SECRET", FOR_THE_SIMULATOR),
        "SUPABASE_AUTH_SERVICE_ROLE_KEY": place.key.get_secret_value(),
        "DO_NOT_TRACK": "1",
    }

    def run(prefix: str) -> None:
        for name, path in files.items():
            there = f"ss:///{BUCKET}/{prefix}{name}"
            subprocess.run(
                [command, "storage", "cp", str(path), there, "--experimental"],
                cwd=project,
                env=environment,
                capture_output=True,
                check=True,
                timeout=LIMIT_SECONDS,
            )

    return run


if __name__ == "__main__":
    raise SystemExit(main())
