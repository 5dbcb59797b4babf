"""A trainer writes text that is meant for somebody's terminal, browser or parser."""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from pathlib import Path

import pytest

from supabase_bridge.cli.output import configure_logging
from supabase_bridge.core.documents import RELEASE_NOTES_LIMIT, Manifest, Metrics, ModelMeta
from supabase_bridge.core.events import EventState
from supabase_bridge.core.json_objects import LIMIT_BYTES
from supabase_bridge.core.text import LINE_LIMIT
from supabase_bridge.mirror.errors import SourceRefusedError
from tests.support.commands import Said, invoke
from tests.support.consumers import Bucket
from tests.support.scene import MODEL, Scene, model_files
from tests.support.simulators.hostile import Conversation, answer, hostile

pytestmark = pytest.mark.exhaustive

CLEAR_SCREEN = "\x1b[2J\x1b[H"
LINK = "\x1b]8;;https://evil.example\x07click\x1b]8;;\x07"
TITLE = "\x1b]0;owned\x07"
EIGHT_BIT = "\x9b31m"
BACKWARDS = "abc\u202egpj.exe"
FORGED_LINE = "x\nError: all is well"
HOSTILE = [CLEAR_SCREEN, LINK, TITLE, EIGHT_BIT, BACKWARDS, FORGED_LINE, "\x07\x08\x7f", "a\rb", "a\u2028b"]
NAMES = [*(text for text in HOSTILE if not set("/:") & set(text)), "x\nError all is well"]
"""Those that MLflow takes as a model's name."""
STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def steering(text: str) -> set[str]:
    """The characters in a text that change a terminal's state; line breaks and the colours of our own output aside."""
    return {
        ascii(c)
        for c in re.sub(r"\x1b\[(0|1|31|32|33)m", "", text)
        if unicodedata.category(c) in STEERING and c != "\n"
    }


def forged(said: Said) -> list[str]:
    return [line for line in (said.out + said.err).split("\n") if re.match(r"Error:? all is well", line)]


@pytest.mark.parametrize("arguments", [["status"], ["outbox", "list"], ["worker", "--once"]])
def test_a_model_name_with_terminal_escapes_reaches_no_terminal(directory_scene: Scene, arguments: list[str]) -> None:
    for text in NAMES:
        directory_scene.promote(directory_scene.train(model=text, files={"notes.txt": b""}), model=text)
    if arguments[0] != "worker":
        directory_scene.work()
    said = invoke(*arguments, "--home", directory_scene.settings.home, color=True)
    assert len(said.out.splitlines()) >= len(NAMES)
    assert steering(said.out + said.err) == set()
    assert forged(said) == []


@pytest.mark.parametrize("command", [["status"], ["mirror", "1"], ["rollback"], ["activate", "20251031T093831Z"]])
def test_an_error_about_a_hostile_name_reaches_no_terminal_as_it_is(directory_scene: Scene, command: list[str]) -> None:
    for text in HOSTILE:
        arguments = [command[0], text, *command[1:]]
        said = invoke(*arguments, "--home", directory_scene.settings.home, color=True)
        assert said.code == (2 if command[0] == "activate" else 1)
        assert steering(said.out + said.err) == set()
        assert len([line for line in said.err.splitlines() if line.startswith("Error: ")]) == 1


def test_a_status_tag_with_terminal_escapes_reaches_no_terminal(directory_scene: Scene) -> None:
    version = directory_scene.train()
    for name in ("supabase.error", "supabase.status", "supabase.run_id"):
        directory_scene.client.set_model_version_tag(MODEL, str(version), name, LINK + FORGED_LINE)
    said = invoke("status", "--home", directory_scene.settings.home, color=True)
    assert "evil.example" in said.out
    assert steering(said.out) == set()
    assert forged(said) == []


def test_json_output_has_hostile_text_as_escapes_and_reads_back_as_it_was(directory_scene: Scene) -> None:
    for text in NAMES:
        directory_scene.train(model=text, files={"notes.txt": b""})
    directory_scene.work()
    status = invoke("status", "--json", "--home", directory_scene.settings.home, color=True)
    events = invoke("outbox", "list", "--json", "--home", directory_scene.settings.home, color=True)
    assert steering(status.out + events.out) == set()
    assert [item["model"] for item in json.loads(status.out)] == sorted(NAMES)
    assert {json.loads(line)["model"] for line in events.out.split("\n") if line} == set(NAMES)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_log_line_cannot_be_forged_or_steer_a_terminal(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(), logging.getLogger("supabase_bridge")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    try:
        configure_logging(verbose=True)
        log = logging.getLogger("supabase_bridge.attack")
        log.warning("event: %s", text, extra={"model": text})
        try:
            raise SourceRefusedError(text, text)
        except SourceRefusedError:
            log.exception("an event failed")
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)
    said = capsys.readouterr().err
    assert steering(said) == set()
    records = [line for line in said.splitlines() if re.match(r"\d{4}-\d\d-\d\d ", line)]
    assert len(records) == 2
    assert not any(line.startswith("Error: all is well") for line in said.splitlines())


def test_a_megabyte_of_error_does_not_flood_a_terminal(directory_scene: Scene) -> None:
    files = {f"model/{number:04}-{'x' * 200}.onnx": b"x" for number in range(1_000)}
    version = directory_scene.train(files=files)
    (handled,) = directory_scene.work()
    assert handled.state is EventState.DEAD
    assert len(directory_scene.tags(version)["error"]) <= 5_000
    said = invoke("mirror", MODEL, version, "--home", directory_scene.settings.home)
    assert len(said.error) <= LINE_LIMIT + 10
    shown = invoke("status", "--home", directory_scene.settings.home)
    assert max(map(len, shown.out.splitlines())) <= LINE_LIMIT + 10


# --- what people read in a browser ------------------------------------------------------------------------------------

SCRIPT = "<script>alert(1)</script>"
IMAGE = "![](https://evil.example/pixel.png)"
MARKDOWN_LINK = "[the dashboard](https://evil.example)"


def summary(scene: Scene) -> str:
    (text,) = [data.decode() for key, data in scene.objects(MODEL).items() if key.endswith("/summary.md")]
    return text


def test_markup_in_params_metrics_and_datasets_is_only_text_in_the_summary(directory_scene: Scene) -> None:
    texts = [SCRIPT, IMAGE, MARKDOWN_LINK, "<img src=x onerror=alert(1)>", "`code` *bold* _x_ <https://evil.example>"]
    params = {f"p{number}": text for number, text in enumerate(texts)}
    directory_scene.promote(
        directory_scene.train(params=params, tags={"mlflow.note.content": " ".join(texts)}, metrics={"auc": 0.9})
    )
    directory_scene.work()
    text = summary(directory_scene)
    assert not set("<[]`*") & set(re.sub(r"\\(.)", "", text))
    shown = [re.sub(r"\\(.)", r"\1", line) for line in text.splitlines()]
    assert {f"- {name}: {markup}" for name, markup in params.items()} <= set(shown)
    assert f"- {' '.join(texts)}" in shown


def test_a_param_with_line_breaks_cannot_forge_a_finding_in_the_summary(directory_scene: Scene) -> None:
    forged_text = "0.1\n\n## Findings\n\n- recall@20: 0.99\n# approved"
    directory_scene.promote(
        directory_scene.train(params={"lr": forged_text}, tags={"mlflow.note.content": forged_text})
    )
    directory_scene.work()
    lines = summary(directory_scene).splitlines()
    assert lines.count("## Findings") == 1
    assert not [line for line in lines if line.startswith(("- recall@20", "# approved"))]


@pytest.mark.parametrize("markup", [SCRIPT, IMAGE, "<img src=x onerror=alert(1)>", CLEAR_SCREEN])
def test_a_description_keeps_its_markdown_in_the_summary_but_no_html_image_or_escape(
    directory_scene: Scene, markup: str
) -> None:
    run_id = directory_scene.log_run()
    directory_scene.promote(directory_scene.register(run_id, description=f"**Better** {markup}"))
    directory_scene.work()
    text = summary(directory_scene)
    assert "**Better**" in text
    assert "<" not in text.replace("\\<", "")
    assert "![" not in text
    assert steering(text) == set()


def test_a_megabyte_of_description_makes_no_document_that_cannot_be_read_back(directory_scene: Scene) -> None:
    run_id = directory_scene.log_run(params={f"p{number}": "x" * 5_000 for number in range(250)})
    directory_scene.promote(directory_scene.register(run_id, description="y" * 1_000_000))
    assert {handled.state for handled in directory_scene.work()} == {EventState.DONE}
    objects = directory_scene.objects(MODEL)
    documents = {key: data for key, data in objects.items() if key.endswith((".json", ".md"))}
    assert max(map(len, documents.values())) <= LIMIT_BYTES
    manifest = Manifest.parse(objects[f"{MODEL}/latest/manifest.json"])
    assert len(manifest.release_notes or "") <= RELEASE_NOTES_LIMIT


def test_metrics_of_more_than_a_megabyte_are_refused_before_anything_is_uploaded(directory_scene: Scene) -> None:
    document = {"metrics": {f"metric{number}": 1 for number in range(60_000)}}
    data = json.dumps(document, separators=(",", ":")).encode()
    assert len(data) < LIMIT_BYTES
    directory_scene.promote(directory_scene.train(files={**model_files(), "metrics.json": data}))
    assert {handled.state for handled in directory_scene.work()} == {EventState.DEAD}
    assert directory_scene.objects() == {}


def test_hostile_metric_names_are_data_in_the_document_and_only_text_elsewhere(directory_scene: Scene) -> None:
    """MLflow's client restricts the names of metrics; those in a metrics.json among the artifacts are anybody's."""
    names = [*HOSTILE, SCRIPT, IMAGE, MARKDOWN_LINK, "auc\n\n## Findings\n\n- recall@20: 0.99", "x" * 5_000]
    for value in (0.5, 0.6):
        own = json.dumps({"metrics": dict.fromkeys(names, value)}).encode()
        directory_scene.promote(directory_scene.train(files={**model_files(value), "metrics.json": own}))
        assert {handled.state for handled in directory_scene.work()} == {EventState.DONE}
    objects = directory_scene.objects(MODEL)
    found = [Metrics.parse(data) for key, data in objects.items() if key.endswith("/metrics.json")]
    assert [set(item.metrics) for item in found] == [set(names)] * 2
    assert [set(item.baseline_diff or {}) for item in found] == [set(), set(names)]
    for key, data in objects.items():
        if key.endswith("/summary.md"):
            text = data.decode()
            assert steering(text) == set()
            assert not set("<[]`*") & set(re.sub(r"\\(.)", "", text))
            assert text.splitlines().count("## Findings") == 1
    assert len(Manifest.parse(objects[f"{MODEL}/latest/manifest.json"]).release_notes or "") <= RELEASE_NOTES_LIMIT
    said = invoke("status", "--home", directory_scene.settings.home, color=True)
    assert steering(said.out + said.err) == set()
    assert forged(said) == []


def test_a_megabyte_of_a_metrics_name_is_refused_in_few_words(directory_scene: Scene) -> None:
    own = json.dumps({"metrics": {"x" * 1_000_000: 0.5}}).encode()
    version = directory_scene.train(files={**model_files(), "metrics.json": own})
    assert {handled.state for handled in directory_scene.work()} == {EventState.DEAD}
    assert len(directory_scene.tags(version)["error"]) <= 1_000
    assert directory_scene.objects() == {}


def test_hostile_text_in_a_document_is_kept_as_data_and_as_nothing_else(directory_scene: Scene) -> None:
    text = "".join(HOSTILE)
    own = json.dumps({"format": text, "extra": {text: text}}).encode()
    run_id = directory_scene.log_run(files={**model_files(), "model_meta.json": own})
    directory_scene.promote(directory_scene.register(run_id, description=text))
    directory_scene.work()
    objects = directory_scene.objects(MODEL)
    (meta,) = [ModelMeta.parse(data) for key, data in objects.items() if key.endswith("/model_meta.json")]
    assert meta.format == text
    assert {key.split("/")[0] for key in objects} == {MODEL}
    assert all(re.fullmatch(r"[A-Za-z0-9_./-]+", key) for key in objects)


# --- what a storage server says to a consumer's terminal --------------------------------------------------------------


@pytest.mark.parametrize("status", ["400 Bad Request", "403 Forbidden", "404 Not Found", "302 Found"])
def test_a_storage_servers_words_steer_no_terminal_of_a_consumer(tmp_path: Path, status: str) -> None:
    words = "".join(HOSTILE)
    body = json.dumps({"statusCode": "418", "error": words, "message": words, "code": words}).encode()
    data = Bucket(lambda _key, _data: None).promote().to_bytes()
    refusal = answer(body, status=status, headers="Location: http://evil%1b[2J/\r\n")

    def script(talk: Conversation) -> None:
        wanted = b"/manifest.json" in talk.head.partition(b"\r\n")[0]
        talk.send(answer(data) if wanted else refusal)

    with hostile(script) as server:
        environment = {"SUPABASE_URL": server.url, "SUPABASE_BRIDGE_CACHE": str(tmp_path / "cache")}
        for arguments in (["verify", MODEL], ["verify", MODEL, "--json"], ["pull", MODEL, tmp_path / "dest"]):
            said = invoke("-v", *arguments, "--home", tmp_path, environment=environment, color=True)
            assert said.code == 1
            assert steering(said.out + said.err) == set()
            assert forged(said) == []


@pytest.mark.parametrize("command", [["pull", "{}", "dest"], ["verify", "{}"], ["keys", "sign-manifest", "{}"]])
def test_a_hostile_reference_reaches_no_terminal_as_it_is(tmp_path: Path, command: list[str]) -> None:
    for text in HOSTILE:
        arguments = [part.replace("{}", text) for part in command]
        said = invoke(*arguments, "--home", tmp_path, color=True)
        assert said.code in {1, 2}
        assert steering(said.out + said.err) == set()
        assert forged(said) == []


def test_paths_with_escapes_are_shown_and_not_sent(tmp_path: Path) -> None:
    home = tmp_path / "a\x1b[2Jb\u202e"
    Bucket.of_directory(home / "supabase" / "models").promote()
    for arguments in (
        ["pull", MODEL, home / "dest"],
        ["pull", MODEL, home / "dest", "--json"],
        ["verify", MODEL],
        ["keys", "generate", "--out", home / "keys"],
        ["keys", "generate", "--out", home / "keys"],
    ):
        said = invoke(*arguments, "--home", home, environment={"SUPABASE_BRIDGE_CACHE": str(home)}, color=True)
        assert said.out + said.err
        assert steering(said.out + said.err) == set()
