"""The JavaScript consumer reports the release that it uses: once per switch, in bounded time, without an error."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support.consumers import BUCKET, FIRST, MODEL, SECOND, Bucket
from tests.support.edge_function import EXAMPLE
from tests.support.peers import deno
from tests.support.simulators.hostile import hostile
from tests.support.usage import UsageProject

SCRIPT = """
import {{ resolve }} from "{example}/release.mjs";
import {{ reporter }} from "{example}/report.mjs";
const {{ options, releases }} = JSON.parse({given});
const problems = [];
const inUse = reporter({{ ...options, consumer: "edge", timeoutMs: 500, onError: (text) => problems.push(text) }});
const found = releases ?? [await resolve({{ ...options, model: "{model}" }})];
const said = [];
for (const release of found) said.push(await inUse(release));
console.log(JSON.stringify({{ said, problems }}));
"""


def run(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Run the reporter in Deno; return what each call resolved to, and the problems."""
    script = folder / "report.mjs"
    text = json.dumps(json.dumps(given))
    script.write_text(SCRIPT.format(example=EXAMPLE.as_uri(), given=text, model=MODEL))
    command = [*deno(), "--allow-net=127.0.0.1", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_the_release_that_is_in_use_is_reported_with_the_publishable_key_once_per_switch(
    usage_project: UsageProject, tmp_path: Path
) -> None:
    simulator = usage_project.simulator
    Bucket.of_simulator(simulator).promote(FIRST)
    simulator.let_anon_read(BUCKET)
    options = {"url": simulator.url, "key": simulator.anon_key}
    assert run(tmp_path, {"options": options}) == {"said": [True], "problems": []}
    first, second = (
        {"model": MODEL, "channel": "latest", "runId": run_id, "sequence": number}
        for number, run_id in ((1, FIRST), (2, SECOND))
    )
    found = run(tmp_path, {"options": options, "releases": [first, first, second]})
    assert found == {"said": [True, False, True], "problems": []}
    reported = [(row["consumer"], row["run_id"], row["sequence"], row["instance"]) for row in usage_project.rows()]
    assert reported == [("edge", FIRST, 1, "-"), ("edge", FIRST, 1, "-"), ("edge", SECOND, 2, "-")]


def test_a_report_to_a_silent_or_refusing_server_ends_in_time_without_an_error(tmp_path: Path) -> None:
    release = {"model": MODEL, "channel": "latest", "runId": FIRST, "sequence": 1}
    with hostile(lambda conversation: conversation.hang()) as server:
        options = {"url": server.url, "key": "sb_publishable_x"}
        found = run(tmp_path, {"options": options, "releases": [release, release]})
    problem = f"the use of {FIRST} was not reported: no answer in 500 ms"
    assert found == {"said": [False, False], "problems": [problem, problem]}
    with hostile(lambda conversation: conversation.send(b"HTTP/1.1 401 x\r\ncontent-length: 0\r\n\r\n")) as server:
        found = run(tmp_path, {"options": {"url": server.url, "key": "k"}, "releases": [release]})
    assert found["problems"] == [f"the use of {FIRST} was not reported: the data API answered 401"]
