"""Somebody reads everything that is logged, tagged, stored and printed, and looks for a secret."""

from __future__ import annotations

import base64
import io
import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
from mlflow.exceptions import MlflowException
from pydantic import SecretStr

from mlflow_supabase.artifact_repository import SupabaseArtifactRepository
from supabase_bridge import Resolver
from supabase_bridge.app.server import Address, server_arguments, server_environment, worker_arguments
from supabase_bridge.cli.output import configure_logging
from supabase_bridge.core.errors import BridgeError, redact_credentials
from supabase_bridge.core.events import EventState
from supabase_bridge.mirror.errors import OutsideRootsError
from supabase_bridge.outbox.queue import open_outbox
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.factory import open_store
from supabase_bridge.trust.keys import PrivateKey
from tests.attacks.refusals import download
from tests.support.commands import Said, invoke
from tests.support.consumers import Bucket
from tests.support.machine import free_port
from tests.support.scene import MODEL, MakeScene, Scene, files_below, supabase_environment
from tests.support.signatures import encoded, key
from tests.support.simulators.storage import Fault, Respond, StorageSimulator

pytestmark = pytest.mark.exhaustive

PASSWORD = "hunter2-is-secret"
RUN_ID = "20251031T093831Z"


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Everything that any library logs, down to the last detail, with tracebacks."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(logging.Formatter("%(name)s %(message)s %(args)s"))
    names = ["", "supabase_bridge", "mlflow", "httpx", "httpcore", "sqlalchemy", "urllib3"]
    loggers = [logging.getLogger(name) for name in names]
    before = [(logger, logger.level) for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
        logger.addHandler(handler)
    yield text
    for logger, level in before:
        logger.removeHandler(handler)
        logger.setLevel(level)


def forms(secret: str) -> list[str]:
    """How a secret may appear; half a key is as bad as a whole one."""
    encoded = base64.b64encode(secret.encode()).decode()
    return [secret, quote(secret, safe=""), encoded, secret[-24:] if len(secret) > 60 else secret]


def hidden(secret: str, *texts: str | bytes) -> bool:
    """Whether a secret is in none of these."""
    return not any(
        form in (text.decode("latin-1") if isinstance(text, bytes) else text)
        for form in forms(secret)
        for text in texts
    )


def everything_kept(scene: Scene) -> list[bytes]:
    """What a run leaves behind: MLflow's database, the outbox in it, tags, artifacts, uploads, every object."""
    return [*files_below(scene.settings.home).values(), *scene.objects().values()]


def every_command(scene: Scene, environment: dict[str, str]) -> list[Said]:
    """All commands, with and without tracebacks."""
    commands = [
        ["worker", "--once"],
        ["mirror", MODEL, "1"],
        ["mirror", MODEL, "99"],
        ["activate", MODEL, RUN_ID],
        ["activate", MODEL, "20200101T000000Z"],
        ["rollback", MODEL],
        ["rollback", MODEL, "--without-mlflow"],
        ["status"],
        ["status", "--json"],
        ["outbox", "list", "--all", "--json"],
    ]
    home = ["--home", str(scene.settings.home)]
    return [invoke("-v", *command, *home, environment=environment) for command in commands]


def test_the_service_key_is_in_no_log_tag_document_or_output_of_a_full_run(
    supabase_scene: Scene, simulator: StorageSimulator, logged: io.StringIO
) -> None:
    supabase_scene.promote(supabase_scene.train())
    supabase_scene.work()
    supabase_scene.promote(supabase_scene.train(), "Staging")
    supabase_scene.train(files={"notes.txt": b""})
    said = every_command(supabase_scene, supabase_environment(simulator))
    assert {0, 1} == {one.code for one in said}
    assert hidden(simulator.service_key, *(one.out + one.err for one in said))
    assert hidden(simulator.service_key, *everything_kept(supabase_scene))
    ours = [line for line in logged.getvalue().splitlines() if line.startswith(("supabase_bridge", "mlflow"))]
    assert ours
    assert hidden(simulator.service_key, logged.getvalue())


@pytest.mark.parametrize(
    "answer",
    [
        Respond(403, b'{"statusCode":"403","error":"Unauthorized","message":"jwt {key} is not valid"}'),
        Respond(400, b'{"statusCode":"{key}","code":"{key}","error":"{key}","message":"Bearer {key}"}'),
        Respond(500, b"<html>authorization: Bearer {key}</html>", {"content-type": "text/html"}),
        Respond(200, b"{key}"),
        Respond(302, b"", {"location": "https://evil.example/?{key}"}),
        Respond(400, b"{key}", {"content-type": "text/plain"}),
    ],
    ids=["403", "400", "500", "nonsense", "redirect", "text"],
)
def test_a_server_that_quotes_the_service_key_back_does_not_make_us_print_or_keep_it(
    supabase_scene: Scene, simulator: StorageSimulator, bridge_log: pytest.LogCaptureFixture, answer: Respond
) -> None:
    key = simulator.service_key
    supabase_scene.promote(supabase_scene.train())
    headers = {name: value.replace("{key}", key) for name, value in answer.headers.items()}
    echo = Respond(answer.status, answer.body.replace(b"{key}", key.encode()), headers)
    simulator.inject(Fault(action=echo, path_contains="/object", times=10_000))
    environment = supabase_environment(simulator)
    home = supabase_scene.settings.home
    commands = [["activate", MODEL, RUN_ID], *([["worker", "--once"]] if answer.status in {302, 400, 403} else [])]
    said = [invoke("-v", *command, "--home", home, environment=environment) for command in commands]
    simulator.clear_faults()
    assert {one.code for one in said} & {0, 1}
    assert hidden(key, *(one.out + one.err for one in said), *everything_kept(supabase_scene), bridge_log.text)


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "ümlaut", "tab\t", "x" * 10_000, "Bearer x", "\x00nul"])
def test_a_service_key_that_cannot_be_sent_is_refused_unprinted(
    directory_scene: Scene, simulator: StorageSimulator, key: str
) -> None:
    settings = Settings.load(
        home=directory_scene.settings.home,
        environ={**supabase_environment(simulator), "SUPABASE_SECRET_KEY": key},
    )
    with closing(open_store(settings, settings.bucket)) as store, pytest.raises(BridgeError) as caught:
        store.ensure_bucket()
    told = "".join(traceback.format_exception(caught.value))
    assert key.strip() not in told + repr(caught.value) + repr(vars(caught.value)) + repr(settings) + repr(store)


def test_no_repr_shows_a_secret(supabase_scene: Scene, simulator: StorageSimulator) -> None:
    key = simulator.service_key
    url = f"postgresql://user:{PASSWORD}@host/db"
    settings = Settings.load(
        home=supabase_scene.settings.home,
        environ={
            **supabase_environment(simulator),
            "SUPABASE_BRIDGE_DATABASE_URL": url,
            "SUPABASE_BRIDGE_EMBEDDINGS_URL": url,
            "SUPABASE_BRIDGE_TRACKING_URI": f"http://u:{PASSWORD}@h",
        },
    )
    store = open_store(settings, settings.bucket)
    made = supabase_scene.runtime
    shown = [
        repr(settings),
        str(settings),
        repr(store),
        store.name,
        repr(vars(store)),
        repr(made),
        repr(made.processor),
    ]
    shown += [repr(made.worker()), repr(vars(made.stores)), f"{settings.service_key}", repr([settings.service_key])]
    assert hidden(key, *shown)
    assert hidden(PASSWORD, *shown)
    store.close()


def test_a_secret_cannot_be_formatted_written_as_json_or_compared_with_a_text() -> None:
    secret = SecretStr(PASSWORD)
    assert hidden(PASSWORD, f"{secret!s}{secret!r}{secret}", str([secret]), str({"key": secret}))
    with pytest.raises(TypeError):
        json.dumps(secret)
    assert secret != PASSWORD


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+psycopg://user:{PASSWORD}@127.0.0.1:{{port}}/mlflow",
        f"mysql+pymysql://user:{PASSWORD}@127.0.0.1:{{port}}/mlflow",
        f"postgresql+psycopg://127.0.0.1:{{port}}/mlflow?user=u&password={PASSWORD}",
        f"postgresql+psycopg://user:p@ss:{PASSWORD}@127.0.0.1:{{port}}/mlflow",
        f"postgresql+nosuchdriver://user:{PASSWORD}@127.0.0.1/mlflow",
        f"postgresql://user:p@x:{PASSWORD}",
        f"sqlite://user:{PASSWORD}@host/x.db",
        f"sqlite:///nothing.db?timeout={PASSWORD}",
        f"sqlite:///nothing.db?password={PASSWORD}",
        f"user:{PASSWORD}@host",
        f"postgresql+psycopg://user:{PASSWORD}@[::1/db",
    ],
)
def test_the_database_password_is_not_printed_whatever_is_wrong_with_the_url(
    tmp_path: Path, logged: io.StringIO, url: str
) -> None:
    environment = {"SUPABASE_BRIDGE_DATABASE_URL": url.format(port=free_port())}
    for arguments in (["status"], ["outbox", "list"], ["worker", "--once"], ["mirror", MODEL, "1"]):
        said = invoke("-v", *arguments, "--home", tmp_path, environment=environment)
        assert said.code in {1, 2}
        assert hidden(PASSWORD, said.out + said.err)
    assert hidden(PASSWORD, logged.getvalue())


def test_the_database_password_is_not_in_the_command_line_of_a_process(tmp_path: Path) -> None:
    url = f"postgresql://user:{PASSWORD}@host/db"
    destination = f"ftp://user:{PASSWORD}@host/artifacts"
    settings = Settings.load(
        home=tmp_path,
        environ={"SUPABASE_BRIDGE_DATABASE_URL": url, "SUPABASE_BRIDGE_ARTIFACTS_DESTINATION": destination},
    )
    commands = [
        *server_arguments(settings, Address(host="127.0.0.1", port=5000), ["--workers", "2"]),
        *worker_arguments(settings),
    ]
    assert hidden(PASSWORD, *commands)
    assert set(server_environment(settings).values()) == {url, f"supabase+{url}", destination}


def test_the_password_of_a_tracking_server_is_not_in_tags_outbox_or_output_when_it_does_not_answer(
    make_scene: MakeScene,
    directory_settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    scene = make_scene(directory_settings)
    version = scene.train()
    tracking = f"http://user:{PASSWORD}@127.0.0.1:{free_port()}"
    environment = {"SUPABASE_BRIDGE_TRACKING_URI": tracking}
    home = scene.settings.home
    said = [
        invoke("-v", *command, "--home", home, environment=environment)
        for command in (["worker", "--once"], ["mirror", MODEL, version], ["status"], ["outbox", "list"])
    ]
    assert "127.0.0.1" in said[0].out
    assert hidden(
        PASSWORD, *(one.out + one.err for one in said), json.dumps(scene.tags(version)), capsys.readouterr().err
    )
    assert hidden(PASSWORD, *everything_kept(scene))


def test_the_password_in_an_allowed_root_is_not_shown_to_whoever_registers_a_source_outside(
    make_scene: MakeScene, directory_settings: Settings
) -> None:
    roots = (f"ftp://user:{PASSWORD}@files.internal/models", f"https://host/x?token={PASSWORD}")
    scene = make_scene(directory_settings, allowed_sources=roots)
    version = scene.register(scene.log_run(), source="/etc")
    scene.work()
    assert "files.internal" in scene.tags(version)["error"]
    assert hidden(PASSWORD, json.dumps(scene.tags(version)), *everything_kept(scene))


@pytest.mark.parametrize(
    "url",
    [
        f"https://user:{PASSWORD}@x.supabase.co",
        f"https://x.supabase.co/?apikey={PASSWORD}",
        f"{PASSWORD}",
        f"ftp://{PASSWORD}",
        f"https://x.supabase.co#{PASSWORD}",
        f"https://[{PASSWORD}",
    ],
)
def test_a_malformed_project_url_with_a_password_in_it_is_refused_unprinted(tmp_path: Path, url: str) -> None:
    environment = {"SUPABASE_URL": url, "SUPABASE_SECRET_KEY": "key"}
    said = invoke("-v", "status", "--home", tmp_path, environment=environment)
    assert said.code == 2
    assert hidden(PASSWORD, said.out + said.err)


@pytest.mark.parametrize(
    "line",
    [
        f'service_key = "{PASSWORD}"',
        f'service_key = "{PASSWORD}',
        f"supabase_url = {PASSWORD}",
        f"[{PASSWORD}",
        f'stages = "{PASSWORD}"',
    ],
)
def test_a_secret_that_somebody_wrote_into_the_settings_file_is_refused_unprinted(tmp_path: Path, line: str) -> None:
    (tmp_path / "supabase-bridge.toml").write_text(line + "\n")
    said = invoke("-v", "status", "--home", tmp_path)
    assert said.code == 2
    assert hidden(PASSWORD, said.out + said.err)


def test_a_log_record_of_any_library_loses_the_credentials_of_urls(capsys: pytest.CaptureFixture[str]) -> None:
    loggers = [logging.getLogger(), logging.getLogger("supabase_bridge")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    try:
        configure_logging(verbose=True)
        try:
            raise ValueError(f"https://user:{PASSWORD}@host/path?token={PASSWORD}&x=1")
        except ValueError as error:
            logging.getLogger("httpx").warning("failed: %s", error, exc_info=True, extra={"url": str(error)})
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "https://***@host/path?token=***&x=1" in said
    assert PASSWORD not in said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no URL at all: a@b, token = 7", "no URL at all: a@b, token = 7"),
        ("supabase://models/two_tower@latest", "supabase://models/two_tower@latest"),
        ("https://u:p@h/x and ftp://t@h", "https://***@h/x and ftp://***@h"),
        ("postgresql://h/d?user=u&password=p&x=1", "postgresql://h/d?user=u&password=***&x=1"),
        ("mytoken=1 Token=2", "mytoken=1 Token=***"),
    ],
)
def test_only_credentials_are_taken_out_of_a_message(text: str, shown: str) -> None:
    assert redact_credentials(text) == shown
    assert str(OutsideRootsError("x", [text])).count(shown) == 1


def test_the_artifact_store_tells_mlflows_clients_no_secret(
    simulator: StorageSimulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    simulator.put_object("models", "x", b"")
    for name, value in {**supabase_environment(simulator), "SUPABASE_BRIDGE_ARTIFACT_BUCKETS": "mine"}.items():
        monkeypatch.setenv(name, value)
    repository = SupabaseArtifactRepository("supabase://mine/1")
    message = json.dumps({"statusCode": "403", "message": f"key {simulator.service_key} refused"}).encode()
    simulator.inject(Fault(action=Respond(400, message), times=100))
    for attack in (repository.list_artifacts, lambda: download(repository, "x", str(tmp_path))):
        with pytest.raises(MlflowException) as caught:
            attack()
        assert hidden(simulator.service_key, "".join(traceback.format_exception(caught.value)), repr(repository))


def test_an_outbox_that_cannot_be_opened_names_no_password_in_its_whole_chain_of_causes(tmp_path: Path) -> None:
    for url in (f"postgresql+psycopg://u:{PASSWORD}@127.0.0.1:{free_port()}/x", f"postgresql://u:p@x:{PASSWORD}"):
        settings = Settings.load(home=tmp_path, environ={"SUPABASE_BRIDGE_DATABASE_URL": url})
        with pytest.raises(BridgeError) as caught, open_outbox(settings):
            pass
        assert hidden(PASSWORD, "".join(traceback.format_exception(caught.value)))


# --- keys that sign, and keys that read -------------------------------------------------------------------------------


def forms_of_key(private: PrivateKey) -> list[str]:
    """How a private key may appear: lines of its PEM, and its one number in any spelling."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    loaded = serialization.load_pem_private_key(private.pem, password=None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    scalar = loaded.private_numbers().private_value
    data = scalar.to_bytes(32, "big")
    lines = [line for line in private.pem.decode().splitlines() if "-----" not in line]
    # The PEM's first line is mostly the kind of key, and its last ones mostly the public half.
    secret_lines = [lines[0][-24:], lines[1][:24]]
    spellings = [str(scalar), data.hex(), base64.b64encode(data).decode()[:-2], encoded(data), repr(data)[2:-1]]
    return [*secret_lines, *spellings, data.decode("latin-1")]


def keyless(private: PrivateKey, *texts: str | bytes) -> bool:
    return not any(
        form in (text.decode("latin-1") if isinstance(text, bytes) else text)
        for form in forms_of_key(private)
        for text in texts
    )


def test_the_signing_key_is_in_no_log_tag_document_repr_or_output_of_a_signed_run_that_succeeds_and_fails(
    make_scene: MakeScene, supabase_settings: Settings, simulator: StorageSimulator, logged: io.StringIO
) -> None:
    private = key("first")
    pem = private.pem.decode()
    scene = make_scene(supabase_settings, signing_key=SecretStr(pem))
    scene.promote(scene.train())
    scene.work()
    head = scene.head()
    assert head is not None
    assert head.signature is not None
    scene.train(files={"notes.txt": b""})
    entry = f"{MODEL}/latest/history/"
    forged = head.model_copy(update={"sequence": 2, "signature": None}).to_bytes()
    (first,) = scene.objects(entry)
    simulator.put_object("models", first.replace("1.json", "2.json"), forged)
    scene.promote(scene.train())
    assert scene.work()[-1].state is EventState.DEAD
    environment = {**supabase_environment(simulator), "SUPABASE_BRIDGE_SIGNING_KEY": pem}
    home = ["--home", str(scene.settings.home)]
    keys = [
        ["keys", "list"],
        ["keys", "sign-manifest", MODEL],
        ["keys", "sign-release", MODEL, RUN_ID],
        ["pull", MODEL],
    ]
    said = every_command(scene, environment)
    said += [invoke("-v", *command, *home, environment=environment) for command in [*keys, ["verify", MODEL]]]
    assert {0, 1} <= {one.code for one in said}
    assert keyless(private, *(one.out + one.err for one in said))
    assert keyless(private, *everything_kept(scene), logged.getvalue())
    made = scene.runtime
    shown = [
        repr(made),
        repr(made.signing),
        repr(vars(made)),
        repr(scene.settings),
        str(made.signing.signer),
        repr(private),
    ]
    assert keyless(private, *shown, f"{made.signing.signer!s}{private!s}")


@pytest.mark.parametrize("spoiled", ["cut", "doubled", "other kind", "header only"])
def test_a_signing_key_that_cannot_be_used_is_refused_unprinted(tmp_path: Path, spoiled: str) -> None:
    private = key("first")
    pem = private.pem.decode()
    texts = {
        "cut": pem[:-60],
        "doubled": pem.replace("\n", "\n\n x", 2),
        "other kind": pem.replace("PRIVATE", "RSA PRIVATE"),
        "header only": pem.replace("-----BEGIN", "BEGIN"),
    }
    (tmp_path / "key.pem").write_text(texts[spoiled])
    (tmp_path / "key.pem").chmod(0o600)
    for name, value in (
        ("SUPABASE_BRIDGE_SIGNING_KEY", texts[spoiled]),
        ("SUPABASE_BRIDGE_SIGNING_KEY_FILE", str(tmp_path / "key.pem")),
        ("SUPABASE_BRIDGE_TRUSTED_KEYS", str(tmp_path / "key.pem")),
    ):
        said = invoke("-v", "keys", "list", "--home", tmp_path, environment={name: value})
        assert said.code == 2
        assert keyless(private, said.out + said.err)


def test_a_new_key_is_printed_nowhere(tmp_path: Path, logged: io.StringIO) -> None:
    said = invoke("-v", "keys", "generate", "--out", tmp_path)
    again = invoke("-v", "keys", "generate", "--out", tmp_path)
    assert (said.code, again.code) == (0, 2)
    made = PrivateKey.parse((tmp_path / "signing-key.pem").read_bytes(), setting="x")
    assert keyless(made, said.out + said.err, again.out + again.err, logged.getvalue())
    assert (tmp_path / "signing-key.pem").stat().st_mode & 0o077 == 0


def test_the_anon_key_is_in_no_output_log_error_or_file_of_a_consumer(
    simulator: StorageSimulator, tmp_path: Path, logged: io.StringIO
) -> None:
    """One that may read, and one that may not: Supabase's answer to it may quote it."""
    anon = simulator.anon_key
    Bucket.of_simulator(simulator).promote()
    environment = {
        "SUPABASE_URL": simulator.url,
        "SUPABASE_PUBLISHABLE_KEY": anon,
        "SUPABASE_BRIDGE_CACHE": str(tmp_path),
    }
    commands = [["pull", MODEL, str(tmp_path / "dest")], ["verify", MODEL, "--json"], ["keys", "list"]]
    said = [invoke("-v", *one, "--home", tmp_path, environment=environment) for one in commands]
    quoting = json.dumps({"statusCode": "403", "error": "Unauthorized", "message": f"jwt {anon} is not valid"}).encode()
    simulator.inject(Fault(action=Respond(400, quoting), path_contains="/object", times=1_000))
    said += [invoke("-v", *one, "--home", tmp_path, environment=environment) for one in commands]
    with Resolver(url=simulator.url, key=anon) as resolver, pytest.raises(BridgeError) as caught:
        resolver.resolve(MODEL)
    simulator.clear_faults()
    chain = "".join(traceback.format_exception(caught.value))
    shown = repr(resolver) + repr(vars(resolver)) + chain + repr(vars(caught.value))
    assert hidden(anon, *(one.out + one.err for one in said), logged.getvalue(), shown)
    assert hidden(anon, *files_below(tmp_path).values())


@pytest.mark.parametrize("status", [302, 400, 403, 404, 500])
def test_the_token_of_a_signed_url_is_in_no_error_log_or_memory_of_a_consumer(
    simulator: StorageSimulator, tmp_path: Path, logged: io.StringIO, status: int
) -> None:
    Bucket.of_simulator(simulator).promote()
    tokens: list[str] = []

    def sign(name: str) -> str:
        url = simulator.sign("models", name, lifetime_seconds=60)
        tokens.append(url.partition("token=")[2])
        return url

    def quoting() -> Respond:
        facts = {"statusCode": str(status), "error": tokens[-1], "message": f"jwt {tokens[-1]} expired"}
        return Respond(status, json.dumps(facts).encode(), {"location": f"https://evil.example/?token={tokens[-1]}"})

    with Resolver(signed_urls=sign, cache_dir=tmp_path / "cache", timeout=timedelta(seconds=2)) as resolver:
        resolver.pull(MODEL, tmp_path / "dest")
        tokens.append(fixed := "a-token-that-signs-short-enough-to-be-quoted")
        url = f"{simulator.url}/storage/v1/x?token={fixed}&download=1"
        resolver_of_one = Resolver(signed_urls=lambda _: url)
        simulator.inject(Fault(action=quoting(), times=1_000))
        with resolver_of_one, pytest.raises(BridgeError) as caught:
            resolver_of_one.resolve(MODEL)
        simulator.clear_faults()
    told = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value)) + repr(resolver)
    ours = "".join(line for line in logged.getvalue().splitlines() if line.startswith("supabase_bridge"))
    for token in tokens:
        assert hidden(token, told, ours, *files_below(tmp_path).values())
