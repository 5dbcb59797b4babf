"""The example for Edge Functions judges a manifest as the Python consumer judges the same bytes."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from supabase_bridge.core.errors import InvalidDocumentError
from supabase_bridge.core.json_objects import canonical
from supabase_bridge.trust import jws
from supabase_bridge.trust.errors import ManifestRefusedError, Refusal
from supabase_bridge.trust.signer import Signer
from supabase_bridge.trust.verify import SeenManifest, TrustPolicy, verify_manifest
from tests.support.consumers import FIRST, LATEST, MODEL, PUBLISHED, SECOND, Bucket, new_signer, trusting
from tests.support.edge_function import drive, pem

NOW = PUBLISHED + timedelta(days=1)
ACCEPTED = "accepted"
ONNX = f"{MODEL}_{FIRST}.onnx"
CODES = {
    Refusal.UNRECORDED_FILE: "malformed",
    Refusal.UNSIGNED: "unsigned",
    Refusal.MALFORMED_SIGNATURE: "signature",
    Refusal.ALGORITHM: "signature",
    Refusal.WRONG_SIGNATURE: "signature",
    Refusal.UNKNOWN_KEY: "unknown-key",
    Refusal.WRONG_MANIFEST: "wrong",
    Refusal.PATH: "path",
    Refusal.ROLLBACK: "replayed",
    Refusal.FORK: "forked",
    Refusal.EXPIRED: "expired",
    Refusal.FROM_FUTURE: "future",
}


def of_python(data: bytes, *signers: Signer, max_age: timedelta | None = None, seen: SeenManifest | None = None) -> str:
    policy = TrustPolicy(keys=trusting(*signers), max_age=max_age)
    try:
        verify_manifest(data, policy=policy, channel=LATEST, seen=seen, now=NOW)
    except InvalidDocumentError:
        return "malformed"
    except ManifestRefusedError as error:
        return CODES[error.reason]
    return ACCEPTED


def of_javascript(documents: list[bytes], *signers: Signer, max_age: timedelta | None = None) -> list[str]:
    """The verdicts of one process."""
    options: dict[str, Any] = {"url": "http://127.0.0.1", "trustedKeys": [pem(signer) for signer in signers]}
    if max_age is not None:
        options["maxAgeSeconds"] = max_age.total_seconds()
    now = NOW.timestamp() * 1000
    steps = [{"manifest": base64.b64encode(data).decode(), "now": now} for data in documents]
    return [said.get("code", ACCEPTED) for said in drive(options, *steps)]


def manifest() -> dict[str, Any]:
    """One that has every field, not signed."""
    bucket = Bucket(lambda _key, _data: None)
    files = bucket.files(FIRST, more={f"{MODEL}_{FIRST}.{tower}.onnx": b"a tower" for tower in ("user", "item")})
    made = bucket.manifest(FIRST, sequence=2, files=files).to_object()
    former = {**made["current"], "run_id": SECOND, "onnx_path": f"{MODEL}/{SECOND}/{MODEL}_{SECOND}.onnx"}
    del former["files"]
    former |= {f"{tower}_onnx_path": f"{MODEL}/{SECOND}/{MODEL}_{SECOND}.{tower}.onnx" for tower in ("user", "item")}
    former |= {"meta_path": f"{MODEL}/{SECOND}/model_meta.json", "metrics_path": f"{MODEL}/{SECOND}/metrics.json"}
    cause = {"registry_id": "7c9e6679-7425-40de-944b-e07fc1f90ae7", "event_id": 48, "by_hand": False}
    cause |= {"by": "alice", "during_freeze": "two_tower is frozen by ops: audit"}
    chain = {"confirmed_by": "ops", "previous_entry_sha256": "5d41402abc4b2a76" * 4}
    return {
        **made,
        "previous": [former],
        "cause": cause,
        "confirmed_at": "2025-11-01T12:00:00Z",
        **chain,
        "more": {"a": 1},
    }


def signed(value: dict[str, Any], signer: Signer) -> dict[str, Any]:
    """What somebody with the key would have written, whether or not it is a manifest."""
    return {**value, "signature": jws.sign(canonical(value, "manifest.json"), signer.key)}


def as_bytes(value: object) -> bytes:
    return json.dumps(value).encode()


VALUES: list[object] = [None, 5, "x", [], {}, True, "long" * 20_000, -1, 1.5, [None], {"a": None}, "\x1b[2J"]


def places(value: object, *above: str | int) -> Iterator[tuple[str | int, ...]]:
    """Of every member and item in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in inner:
        yield (*above, name)
        yield from places(item, *above, name)


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    """The manifest with anything in one place, and without it."""
    for place in places(manifest()):
        for value in (*VALUES, ...):
            changed = copy.deepcopy(manifest())
            holder: Any = changed
            for name in place[:-1]:
                holder = holder[name]
            if value is ...:
                del holder[place[-1]]
            else:
                holder[place[-1]] = value
            yield f"{'.'.join(map(str, place))} = {str(value)[:20]}", changed


NUMBERS = ("sequence", "current.model_version", "previous.0.model_version", "cause.event_id", "size_bytes")
TIMES = ("published_at", "confirmed_at")


def only_python_reads(what: str) -> bool:
    """Whether Python makes a number or time of a value of another type; no writer of ours writes one."""
    place, _, value = what.partition(" = ")
    return (place.endswith(NUMBERS) and value == "True") or (place.endswith(TIMES) and value in {"5", "-1", "1.5"})


@pytest.mark.parametrize("way", ["unsigned", "signed by whom we trust", "signed before the change"])
@pytest.mark.exhaustive
def test_a_manifest_with_anything_in_one_place_is_judged_as_python_judges_it(way: str) -> None:
    signer = new_signer()
    signers = [] if way == "unsigned" else [signer]
    documents = dict(variants())
    if way == "signed by whom we trust":
        documents = {what: signed(value, signer) for what, value in documents.items()}
    elif way == "signed before the change":
        signature = signed(manifest(), signer)["signature"]
        documents = {what: {**value, "signature": signature} for what, value in documents.items()}
    if way != "signed by whom we trust":
        documents |= {f"signature = {str(value)[:20]}": {**manifest(), "signature": value} for value in VALUES}
    data = [as_bytes(value) for value in documents.values()]
    found = dict(zip(documents, of_javascript(data, *signers), strict=True))
    expected = {what: of_python(one, *signers) for what, one in zip(documents, data, strict=True)}
    for what, verdict in expected.items():
        if verdict == ACCEPTED and only_python_reads(what):
            expected[what] = "malformed"
    assert {what: (verdict, expected[what]) for what, verdict in found.items() if verdict != expected[what]} == {}
    judged = (
        {"signature", "unsigned"} if way == "signed before the change" else {ACCEPTED, "malformed", "path", "wrong"}
    )
    assert set(found.values()) == judged


def nested(depth: int) -> bytes:
    return as_bytes(manifest()).replace(b'"a": 1', b'"a": ' + b"[" * depth + b"]" * depth)


def replaced(old: str, new: str) -> bytes:
    whole = as_bytes(manifest())
    assert old.encode() in whole
    return whole.replace(old.encode(), new.encode())


def timed(text: str) -> bytes:
    return replaced('"2025-11-01T12:00:00Z"', json.dumps(text))


def run(run_id: str) -> bytes:
    return replaced(FIRST, run_id)


BYTES: dict[str, bytes] = {
    "as it is": as_bytes(manifest()),
    "a byte order mark": b"\xef\xbb\xbf" + as_bytes(manifest()),
    "UTF-16": json.dumps(manifest()).encode("utf-16"),
    "half a character": replaced('"better"', '"\\ud800"'),
    "half a character as a name": replaced('"a": 1', '"\\udc00": 1'),
    "both halves": replaced('"better"', '"\\ud83d\\ude00 \\\\ud800"'),
    "no finite number": replaced('"a": 1', '"a": 1e999'),
    "NaN": replaced('"a": 1', '"a": NaN'),
    "a number in two notations": replaced('"sequence": 2', '"sequence": 2.0'),
    "the highest sequence": replaced('"sequence": 2', '"sequence": 99999999'),
    "a sequence beyond the highest": replaced('"sequence": 2', '"sequence": 100000000'),
    "sequence 0": replaced('"sequence": 2', '"sequence": 0'),
    "a name twice": replaced('"a": 1', '"a": 1, "\\u0061": 1'),
    "nested as deep as may be": nested(62),
    "nested too deep": nested(63),
    "nested far too deep": nested(5000),
    "signed with nothing": replaced('"more":', '"signature": null, "more":'),
    "files above": replaced('"more":', '"files": {}, "more":'),
    "files above that lead elsewhere": replaced('"more":', '"files": {"../x": 1}, "more":'),
    "a file in a folder": replaced('"model_meta.json"', '"folder/a b@c.json"'),
    "a digest in a list": replaced('"sha256": "', '"sha256": ["x"], "was": "'),
    "a file named as nobody would": replaced('"model_meta.json"', '"__proto__"'),
    **{
        f"a file named {name[:20]!r}": replaced('"model_meta.json"', json.dumps(name))
        for name in ("..", "a/../b", "/a", "a/", "a//b", "", ".", "a\\b", "a%2fb", "é", "a\n", "a" * 255, "a" * 256)
    },
    **{
        f"run_id {run_id[:30]!r}": run(run_id)
        for run_id in (
            "20251031T093831Z-v2",
            "20240229T000000Z",
            "20250229T000000Z",
            "20251301T000000Z",
            "20250001T000000Z",
            "20250100T000000Z",
            "20251031T240000Z",
            "20251031T093860Z",
            "00000101T000000Z",
            "00010101T000000Z",
            "99991231T235959Z",
            "20251031T093831Z-" + "x" * 65,
            "20251031T093831Z-",
            "20251031T093831z",
        )
    },
    **{
        f"confirmed at {text!r}": timed(text)
        for text in (
            "yesterday",
            "",
            "2025-11-01",
            "2025-11-01T02:40:10",
            "2025-11-01 02:40:10Z",
            "2025-11-01t02:40:10z",
            "2025-11-01T02:40:10.123456789Z",
            "2025-11-01T02:40:10.Z",
            "2025-11-01T02:40:10+23:59",
            "2025-11-01T02:40:10+24:00",
            "2025-11-01T02:40:10-00:60",
            "2025-02-30T00:00:00Z",
            "2025-11-01T24:00:00Z",
            "2025-11-01T23:59:60Z",
            "0000-01-01T00:00:00Z",
            "0001-01-01T00:00:00+00:01",
            "0001-01-01T00:00:00Z",
            "9999-12-31T23:59:59-00:01",
            "+002025-11-01T02:40:10Z",
            "Sat, 01 Nov 2025 02:40:10 GMT",
            " 2025-11-01T02:40:10Z",
        )
    },
}


def test_bytes_on_the_edge_of_what_a_manifest_may_be_are_judged_as_python_judges_them() -> None:
    found = dict(zip(BYTES, of_javascript(list(BYTES.values())), strict=True))
    assert found == {what: of_python(data) for what, data in BYTES.items()}
    assert set(found.values()) == {ACCEPTED, "malformed", "path"}


def test_a_whole_number_that_javascript_cannot_hold_is_refused() -> None:
    """JavaScript would read another one; Python could not remember it, nor verify a signature over it."""
    exact, beyond = (replaced('"a": 1', f'"a": {number}') for number in (2**53 - 1, 2**53))
    verdicts = [ACCEPTED, "malformed"]
    assert of_javascript([exact, beyond]) == [of_python(exact), of_python(beyond)] == verdicts
    value = signed(json.loads(exact), signer := new_signer())
    same = as_bytes(value).replace(str(2**53 - 1).encode(), f"{2**53 - 1}.0".encode())
    assert of_javascript([same], signer) == [of_python(same, signer)] == [ACCEPTED]
    large = as_bytes(value).replace(str(2**53 - 1).encode(), str(2**53).encode())
    assert of_javascript([large], signer) == [of_python(large, signer)] == ["malformed"]


def test_a_manifest_is_as_old_as_python_takes_it_to_be() -> None:
    moments = ["2025-10-31T12:00:00Z", "2025-11-02T02:45:10Z", "2025-11-02T02:45:10.001Z", "2025-11-01T02:40:10Z"]
    moments += [
        "2025-11-01T02:40:09.999Z",
        "2025-11-02T02:40:10+01:00",
        "2025-11-03T02:40:10+23:59",
        "2025-11-01T03:40:10+01:30",
    ]
    ages = [timedelta(days=1), timedelta(0)]
    for age in ages:
        data = [timed(moment) for moment in moments]
        found = of_javascript(data, max_age=age)
        assert dict(zip(moments, found, strict=True)) == {
            moment: of_python(one, max_age=age) for moment, one in zip(moments, data, strict=True)
        }
        assert {"expired", "future"} <= set(found)


def test_a_signature_in_another_form_is_judged_as_python_judges_it() -> None:
    signer = new_signer()
    whole: str = signed(manifest(), signer)["signature"]
    header, _, end = whole.partition("..")

    def headed(text: str) -> str:
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=") + ".." + end

    kid = signer.public.key_id
    signatures = [
        whole,
        f"{header}..A",
        f"{header}..AA",
        f"{header}..{end}AAAA",
        f"{header}..{end[:-4]}",
        f"{header}..",
        f"{header[:-1]}..{end}",
        f"{header}A..{end}",
        f"{header}.AA.{end}",
        f"{whole}\n",
        f"{whole}=",
        "",
        headed(f'{{"alg":"ES256","kid":"{kid}"}} '),
        headed(f'\ufeff{{"alg":"ES256","kid":"{kid}"}}'),
        headed(f'{{"alg":"none","alg":"ES256","kid":"{kid}"}}'),
        headed(f'{{"alg":"ES256","kid":"{kid}","b64":false}}'),
        headed('{"alg":"ES256","kid":"\\u001b[2J"}'),
        headed('{"alg":"ES256","kid":5}'),
        headed('{"alg":"ES256"}'),
        headed("null"),
        headed("[]"),
        headed("5"),
        headed('"x"'),
        headed("{"),
    ]
    data = [as_bytes({**manifest(), "signature": one}) for one in signatures]
    found = dict(zip(signatures, of_javascript(data, signer), strict=True))
    assert found == {one: of_python(document, signer) for one, document in zip(signatures, data, strict=True)}
    assert set(found.values()) == {ACCEPTED, "signature", "unknown-key"}
