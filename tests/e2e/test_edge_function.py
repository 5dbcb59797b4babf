"""The example for Edge Functions reads what the bridge writes, and refuses what the Python consumer refuses."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import rfc8785

from tests.support.consumers import BUCKET, FIRST, LATEST, MODEL, SECOND, Bucket, new_signer
from tests.support.edge_function import EXAMPLE, drive, explain, pem, serving
from tests.support.peers import node
from tests.support.simulators.hostile import answer, hostile
from tests.support.simulators.storage import StorageSimulator

GOLDEN = Path(__file__).parents[1] / "golden"
ONNX = f"{MODEL}_{FIRST}.onnx"


class Project:
    """A simulated project with signed releases, and what a consumer of it knows."""

    def __init__(self, simulator: StorageSimulator) -> None:
        self.simulator = simulator
        self.signer = new_signer()
        self.bucket = Bucket.of_simulator(simulator, signer=self.signer)
        self.bucket.promote(FIRST)
        self.options = {"url": simulator.url, "key": simulator.service_key, "trustedKeys": [pem(self.signer)]}

    def drive(self, *steps: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
        return drive({**self.options, **more}, *steps)

    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.simulator.object_bytes(BUCKET, LATEST.manifest))
        return found

    def put(self, value: object, *, key: str = LATEST.manifest) -> None:
        self.simulator.put_object(BUCKET, key, json.dumps(value).encode())


@pytest.fixture
def project() -> Iterator[Project]:
    with StorageSimulator() as simulator:
        yield Project(simulator)


@pytest.mark.parametrize("runtime", ["Deno", "Node"])
def test_it_resolves_and_fetches_what_python_wrote_and_signed(project: Project, runtime: str) -> None:
    (said,) = explain(project.options, {"fetch": ""}, runtime=[node()] if runtime == "Node" else None)
    assert base64.b64decode(said.pop("file")) == project.bucket.files(FIRST)[ONNX]
    assert said == {
        "runId": FIRST,
        "sequence": 1,
        "signed": True,
        "keyId": project.signer.public.key_id,
        "onnxPath": f"{MODEL}/{FIRST}/{ONNX}",
        "frozen": True,
    }


def test_it_reads_an_unsigned_manifest_where_no_key_is_trusted(project: Project) -> None:
    project.bucket.signer = None
    project.bucket.promote(SECOND)
    (said,) = project.drive(trustedKeys=[])
    assert (said["runId"], said["signed"]) == (SECOND, False)


@pytest.mark.parametrize("way", ["anon key", "public bucket", "signed URLs"])
def test_it_reads_every_way_a_consumer_may(project: Project, way: str) -> None:
    options: dict[str, Any] = {"key": None}
    if way == "anon key":
        project.simulator.let_anon_read(BUCKET)
        options = {"key": project.simulator.anon_key}
    elif way == "public bucket":
        project.simulator.make_public(BUCKET)
    else:
        keys = project.simulator.object_keys(BUCKET)
        options |= {"url": None, "signed": {key: project.simulator.sign(BUCKET, key) for key in keys}}
    (said,) = project.drive({"fetch": ""}, **options)
    assert base64.b64decode(said["file"]) == project.bucket.files(FIRST)[ONNX]


@pytest.mark.parametrize(
    "twice", ['"sequence": 1, "seq\\u0075ence": 2', '"more": [{"a": "\\"", "b": {"c": 1}, "a": 2}]', '"a": {}, "a": []']
)
def test_a_name_that_comes_twice_is_refused_as_python_refuses_it(project: Project, twice: str) -> None:
    whole = project.simulator.object_bytes(BUCKET, LATEST.manifest)
    for more, said in ((twice, "malformed"), ('"a": [{"b": 1}, {"b": 1}], "b": "a:", "c": {"a": 1}', None)):
        project.simulator.put_object(BUCKET, LATEST.manifest, b"{" + more.encode() + b"," + whole.lstrip()[1:])
        assert project.drive(trustedKeys=[])[0].get("code") == said


def test_the_golden_signed_manifest_is_believed_by_the_key_that_signed_it() -> None:
    trusted = (GOLDEN / "signing_key.pem").read_text()
    data = (GOLDEN / "manifest_signed.json").read_bytes()
    with StorageSimulator() as simulator:
        simulator.put_object(BUCKET, LATEST.manifest, data)
        options = {"url": simulator.url, "key": simulator.service_key}
        (said,) = drive({**options, "trustedKeys": [trusted]})
        assert (said["runId"], said["signed"]) == (FIRST, True)
        assert drive({**options, "trustedKeys": [pem(new_signer())]}) == [{"code": "unknown-key"}]


def test_the_golden_manifest_with_towers_and_features_is_read_whole() -> None:
    with StorageSimulator() as simulator:
        simulator.put_object(BUCKET, LATEST.manifest, (GOLDEN / "manifest_with_towers.json").read_bytes())
        tags = b'{"drama": 0}'
        simulator.put_object(BUCKET, f"{MODEL}/{FIRST}/features/tag_vocab.json", tags)
        options = {"url": simulator.url, "key": simulator.service_key}
        (said,) = drive(options, {"fetch": "features/tag_vocab.json"})
        assert base64.b64decode(said["file"]) == tags
        assert said["userOnnxPath"] == f"{MODEL}/{FIRST}/{MODEL}_{FIRST}.user.onnx"


def test_an_unchanged_manifest_costs_one_304(project: Project) -> None:
    said = project.drive({}, {"previous": True})
    assert said[0] == said[1]
    assert [call.status for call in project.simulator.calls()] == [200, 304]


def test_an_older_manifest_than_one_seen_is_refused(project: Project) -> None:
    old = project.manifest()
    assert project.drive(minSequence=2) == [{"code": "replayed"}]
    project.bucket.promote(SECOND)
    key = project.simulator.service_key
    back = {
        "url": f"{project.simulator.url}/storage/v1/object/{BUCKET}/{LATEST.manifest}",
        "headers": {
            "apikey": key,
            "authorization": f"Bearer {key}",
            "x-upsert": "true",
            "content-type": "application/json",
        },
        "body": json.dumps(old),
    }
    said = project.drive({}, {"previous": True, "put": back})
    assert (said[0]["sequence"], said[1]) == (2, {"code": "replayed"})


@pytest.mark.parametrize("what", ["bucket", "project", "signed URLs"])
def test_what_was_seen_elsewhere_says_nothing_about_this_bucket(project: Project, what: str) -> None:
    first = project.simulator.object_bytes(BUCKET, LATEST.manifest)
    project.bucket.promote(SECOND)
    with StorageSimulator() as other:
        other.put_object(BUCKET, LATEST.manifest, first)
        project.simulator.put_object("others", LATEST.manifest, first)
        elsewhere: dict[str, dict[str, Any]] = {
            "bucket": {"bucket": "others"},
            "project": {"url": other.url, "key": other.service_key},
            "signed URLs": {
                "key": None,
                "url": other.url,
                "signed": {LATEST.manifest: other.sign(BUCKET, LATEST.manifest)},
            },
        }
        said = project.drive({}, {"previous": True, "options": elsewhere[what]})
    assert [one.get("sequence") for one in said] == [2, 1]


TAMPERED: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "the run_id": ("signature", lambda m: m["current"].update(run_id=SECOND)),
    "a digest": ("signature", lambda m: m["current"]["files"][ONNX].update(sha256="0" * 64)),
    "a size": ("signature", lambda m: m["current"]["files"][ONNX].update(size_bytes=1)),
    "the sequence": ("signature", lambda m: m.update(sequence=99)),
    "the time": ("signature", lambda m: m["current"].update(published_at="2030-01-01T00:00:00Z")),
    "the notes": ("signature", lambda m: m.update(release_notes="all is well")),
    "a new field": ("signature", lambda m: m.update(extra=1)),
    "no signature": ("unsigned", lambda m: m.pop("signature")),
    "half a signature": ("signature", lambda m: m.update(signature=m["signature"][:-20])),
    "no text": ("signature", lambda m: m.update(signature=["x"])),
    "a signature that is no base64": ("signature", lambda m: m.update(signature=m["signature"].split(".")[0] + "..A")),
    "another algorithm": (
        "signature",
        lambda m: m.update(
            signature=base64.urlsafe_b64encode(b'{"alg":"none","kid":"x"}').decode().rstrip("=") + "..AA"
        ),
    ),
}


@pytest.mark.parametrize("what", TAMPERED)
def test_a_manifest_that_was_changed_after_signing_is_refused(project: Project, what: str) -> None:
    code, change = TAMPERED[what]
    manifest = project.manifest()
    change(manifest)
    project.put(manifest)
    assert project.drive() == [{"code": code}]


def test_a_key_that_is_not_trusted_is_refused(project: Project) -> None:
    assert project.drive(trustedKeys=[pem(new_signer())]) == [{"code": "unknown-key"}]
    assert project.drive(trustedKeys=["-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"]) == [
        {"code": "settings"}
    ]


LEADING_ELSEWHERE: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "another model": ("wrong", lambda m: m.update(model_name="other")),
    "another channel": ("wrong", lambda m: m.update(channel="staging")),
    "onnx_path": ("path", lambda m: m["current"].update(onnx_path=f"other/{FIRST}/{ONNX}")),
    "meta_path": ("path", lambda m: m["current"].update(meta_path="../secret")),
    "user_onnx_path": ("path", lambda m: m["current"].update(user_onnx_path=f"{MODEL}/{FIRST}/{ONNX}")),
    "metrics_path": ("malformed", lambda m: m["current"].pop("metrics_path")),
    "a run_id": ("path", lambda m: m["current"].update(run_id="../../x")),
    "a file": ("path", lambda m: m["current"]["files"].update({"../x": {"size_bytes": 0, "sha256": "0" * 64}})),
    "a record": ("malformed", lambda m: m["current"]["files"].update({"x": {"size_bytes": -1, "sha256": "0" * 64}})),
    "no sequence": ("malformed", lambda m: m.pop("sequence")),
    "previous": ("path", lambda m: m.update(previous=[{"run_id": SECOND, "onnx_path": "http://x/y"}])),
}


@pytest.mark.parametrize("what", LEADING_ELSEWHERE)
def test_an_unsigned_manifest_that_leads_elsewhere_is_refused(project: Project, what: str) -> None:
    code, change = LEADING_ELSEWHERE[what]
    manifest = project.manifest()
    change(manifest)
    project.put(manifest)
    assert project.drive(trustedKeys=[]) == [{"code": code}]


OUTSIDE = "../../../../../../rest/v1/users"


@pytest.mark.parametrize("above", [{"files": {}}, {"files": None}, {}])
def test_no_file_name_of_a_manifest_leads_a_request_out_of_its_release(project: Project, above: dict[str, Any]) -> None:
    manifest = {**project.manifest(), **above}
    manifest["current"]["files"][OUTSIDE] = {"size_bytes": 2, "sha256": "0" * 64}
    project.put(manifest)
    assert project.drive({"fetch": OUTSIDE}, trustedKeys=[]) == [{"code": "path"}]
    assert {call.path for call in project.simulator.calls()} == {f"/storage/v1/object/{BUCKET}/{LATEST.manifest}"}


def test_a_release_that_the_caller_changed_leads_no_request_out_of_it_either(project: Project) -> None:
    record = {"size_bytes": 2, "sha256": "0" * 64}
    changed: list[tuple[str, dict[str, Any], str]] = [
        (OUTSIDE, {}, "path"),
        (OUTSIDE, {"files": {OUTSIDE: record}}, "path"),
        ("summary.md", {}, "absent"),
        ("toString", {}, "absent"),
        (ONNX, {"runId": "../.."}, "path"),
        (ONNX, {"model": ".."}, "path"),
        (ONNX, {"files": {ONNX: {}}}, "malformed"),
    ]
    said = project.drive(*({"fetch": name, "release": release} for name, release, _ in changed))
    assert said == [{"code": code} for _, _, code in changed]
    assert {call.path for call in project.simulator.calls()} == {f"/storage/v1/object/{BUCKET}/{LATEST.manifest}"}


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"a":' * 100 + b"1" + b"}" * 100])
def test_what_is_no_manifest_is_refused(project: Project, data: bytes) -> None:
    project.simulator.put_object(BUCKET, LATEST.manifest, data)
    assert project.drive() == [{"code": "malformed"}]


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: b"X" + data[1:]])
def test_a_file_that_is_not_as_recorded_is_refused(project: Project, change: Callable[[bytes], bytes]) -> None:
    key = f"{MODEL}/{FIRST}/{ONNX}"
    project.simulator.put_object(BUCKET, key, change(project.simulator.object_bytes(BUCKET, key)))
    assert project.drive({"fetch": ""}) == [{"code": "corrupt"}]


def test_an_old_manifest_is_refused_where_an_age_is_set(project: Project) -> None:
    (said,) = explain({**project.options, "maxAgeSeconds": timedelta(days=1).total_seconds()})
    assert (said["code"], "longer ago" in said["message"]) == ("expired", True)


def test_a_manifest_from_the_future_is_no_old_one_and_its_refusal_says_so(project: Project) -> None:
    ahead = datetime.now(timezone.utc) + timedelta(hours=1)
    project.bucket.promote(SECOND, published_at=ahead)
    (said,) = explain({**project.options, "maxAgeSeconds": 10**10})
    assert (said["code"], "this machine's clock" in said["message"]) == ("future", True)
    assert project.drive()[0]["runId"] == SECOND


@pytest.mark.parametrize("slashes", ["/", "//"])
def test_a_url_may_end_in_a_slash(project: Project, slashes: str) -> None:
    assert project.drive(url=project.simulator.url + slashes)[0]["runId"] == FIRST
    assert [call.path for call in project.simulator.calls()] == [f"/storage/v1/object/{BUCKET}/{LATEST.manifest}"]


WRONG_OPTIONS: list[dict[str, Any]] = [
    {"url": None},
    {"url": "models.example"},
    {"url": "ftp://models.example"},
    {"url": "https://name:word@models.example"},
    {"url": 5},
    {"key": "two words"},
    {"key": 5},
    {"bucket": ".."},
    {"bucket": "a/b"},
    {"bucket": 5},
    {"signed": {}},
    {"key": None, "signed": {LATEST.manifest: "file:///etc/passwd"}},
    {"key": None, "signed": {}},
    {"model": "../x"},
    {"model": 5},
    {"channel": "Latest"},
    {"channel": None},
    {"trustedKeys": "a key"},
    {"trustedKeys": [5]},
    {"trustedKeys": [], "requireSignature": True},
    {"maxAgeSeconds": "soon"},
    {"maxAgeSeconds": -1},
    {"minSequence": "soon"},
    {"timeoutMs": "soon"},
    {"timeoutMs": 2**31},
]


def test_settings_that_cannot_be_are_refused_before_anything_is_asked(project: Project) -> None:
    said = project.drive(*({"options": wrong} for wrong in WRONG_OPTIONS))
    assert [(wrong, one) for wrong, one in zip(WRONG_OPTIONS, said, strict=True) if one != {"code": "settings"}] == []
    assert project.simulator.calls() == []


def test_what_is_missing_or_denied_is_told_apart(project: Project) -> None:
    assert project.drive(channel="staging") == [{"code": "absent"}]
    assert project.drive(key="wrong") == [{"code": "denied"}]


def test_a_hostile_server_is_given_up_and_no_redirect_is_followed() -> None:
    def options(url: str) -> dict[str, Any]:
        return {"url": url, "key": "k", "timeoutMs": 400}

    with hostile(lambda talk: talk.hang()) as server:
        assert drive(options(server.url)) == [{"code": "late"}]
    with hostile(lambda talk: talk.trickle(answer(b"{}" * 1000))) as server:
        assert drive(options(server.url)) == [{"code": "late"}]
    with hostile(lambda talk: talk.send(answer(b" " * 1_000_001))) as server:
        assert drive(options(server.url)) == [{"code": "too-large"}]
    with hostile(lambda talk: talk.send(answer(b""))) as elsewhere:
        location = f"Location: {elsewhere.url}/x\r\n"
        with hostile(lambda talk: talk.send(answer(b"", status="302 Found", headers=location))) as server:
            assert drive(options(server.url)) == [{"code": "redirected"}]
        assert elsewhere.heads == []


def test_a_signer_that_never_answers_is_given_up() -> None:
    assert drive({"signed": "never", "timeoutMs": 100}) == [{"code": "late"}]


def test_its_canonical_json_is_that_of_python() -> None:
    texts = [
        '{"b":1,"a":[true,null,1.5,1e21,1e-7,0.1,-0.0,100]}',
        '{"\\ud83d\\ude00":1,"\\ufb33":2,"\\u20ac":3,"\\r":4,"1":5,"\\u0080":6}',
        '{"text":"\\u000f\\n\\"\\\\/ \\u007f\\u2028 作成者"}',
    ]
    said = drive({}, *({"canonical": text} for text in texts))
    assert [item["canonical"].encode() for item in said] == [rfc8785.dumps(json.loads(text)) for text in texts]


def test_the_function_itself_answers_and_goes_on_with_what_it_knows(project: Project, tmp_path: Path) -> None:
    manifest = project.simulator.object_bytes(BUCKET, LATEST.manifest)
    environment = {
        "SUPABASE_URL": project.simulator.url,
        "SUPABASE_PUBLISHABLE_KEYS": json.dumps({"default": project.simulator.anon_key}),
        "SUPABASE_ANON_KEY": "no.longer.valid",
        "MODEL_TRUSTED_KEY": pem(project.signer),
        "MODEL_MAX_AGE_SECONDS": str(10**10),
    }
    with serving("index.ts", tmp_path, environment) as function:
        assert function.ask() == (503, {"error": "no release yet"})  # the anonymous key may not read yet
        project.simulator.let_anon_read(BUCKET)
        first = (200, {"run_id": FIRST, "signed": True, "embedding_dim": 256})
        assert function.ask() == first
        project.put({})
        assert function.ask() == first
        project.simulator.put_object(BUCKET, LATEST.manifest, manifest)
        project.bucket.promote(SECOND)
        second = (200, {**first[1], "run_id": SECOND})
        assert function.ask() == second
        project.simulator.put_object(BUCKET, LATEST.manifest, manifest)
        assert function.ask() == second
    codes = [line.partition(":")[0] for line in function.log.read_text().splitlines()]
    assert codes == ["absent", "unsigned", "replayed"]


def test_the_functions_and_their_readme_use_what_the_file_exports() -> None:
    exported = set(
        re.findall(
            r"^export (?:async function|function|class) (\w+)", (EXAMPLE / "release.mjs").read_text(), re.MULTILINE
        )
    )
    for name in ("index.ts", "recommend.ts", "README.md"):
        text = (EXAMPLE / name).read_text()
        used = re.search(r"import \{ ([\w, ]+) \} from \"./release.mjs\"", text)
        assert used is not None
        assert set(used[1].split(", ")) <= exported
