"""Signed manifests, signatures, keys, criteria and pickles of any kind: believed, or refused with an error of ours."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from copy import deepcopy
from datetime import datetime, timedelta, timezone
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from supabase_bridge.core.criteria import Baseline, Gate, judge, parse_gate, with_tags
from supabase_bridge.core.documents import FileRecord, Manifest
from supabase_bridge.core.errors import BridgeError, InvalidGateError, SettingsError
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.mirror.checks.pickle import check_state_dict
from supabase_bridge.mirror.errors import ModelRejectedError
from supabase_bridge.mirror.source_files import FileEnds
from supabase_bridge.trust import model_signature
from supabase_bridge.trust.keys import PrivateKey, PublicKey
from supabase_bridge.trust.verify import SeenManifest, TrustPolicy, verify_manifest
from tests.attacks.fuzzing import fuzzed, json_value, junk, mixed, text
from tests.attacks.test_signed_manifests import GOLDEN, unassigns
from tests.mirror.torch_globals import FILES
from tests.support.scene import state_dict
from tests.support.signatures import encoded, key, signer, trusting, with_header, with_signature
from tests.support.torch_save import zip_archive

MESSAGE_LIMIT = 1_000
LATEST = ChannelPaths(model_key="two_tower", channel="latest")
SIGNED = signer("first").sign(GOLDEN)
PLACES = unassigns(SIGNED.to_object())
POLICIES = [
    TrustPolicy(),
    TrustPolicy(keys=trusting("first")),
    TrustPolicy(keys=trusting("first"), require_signature=False, max_age=timedelta(days=1)),
    TrustPolicy(require_signature=True),
]
SEENS = [None, SeenManifest.of(SIGNED), SeenManifest(sequence=0, digest=""), SeenManifest(sequence=10**7, digest="x")]
NOW = datetime(2025, 11, 1, 12, tzinfo=timezone.utc)


def ours(call: Callable[[], object], kind: type[BridgeError] = BridgeError) -> bool:
    """Whether a call ended with an error of ours; any other one comes out, and fails the test."""
    failed: BridgeError | None = None
    try:
        call()
    except kind as error:
        failed = error
    assert failed is None or len(str(failed)) <= MESSAGE_LIMIT
    return failed is not None


def looked_at(data: bytes) -> list[Manifest]:
    """What readers of every kind make of some bytes, where they believe them."""
    believed: list[Manifest] = []
    for policy in POLICIES:
        for seen in SEENS:
            ours(
                lambda policy=policy, seen=seen: believed.append(  # type: ignore[misc]  # mypy cannot infer a lambda's default
                    verify_manifest(data, policy=policy, channel=LATEST, seen=seen, now=NOW)
                )
            )
    return believed


@fuzzed(30)
@given(data=st.one_of(junk, json_value.map(lambda value: json.dumps(value).encode())))
def test_anything_in_place_of_a_manifest_is_refused(data: bytes) -> None:
    assert looked_at(data) == []


@fuzzed(60)
@given(place=st.sampled_from(PLACES), forged=json_value)
def test_a_signed_manifest_with_anything_in_one_place_is_not_believed_for_its_signature(
    place: tuple[str | int, ...], forged: object
) -> None:
    value: Any = deepcopy(SIGNED.to_object())
    inner = value
    for name in place[:-1]:
        inner = inner[name]
    changed = inner[place[-1]] != forged or type(inner[place[-1]]) is not type(forged)
    inner[place[-1]] = forged
    data = json.dumps(value).encode()
    looked_at(data)
    if changed:
        strict = TrustPolicy(keys=trusting("first"))
        assert ours(lambda: verify_manifest(data, policy=strict, channel=LATEST, seen=None, now=NOW))


part = st.one_of(
    st.text(alphabet="ABCabc012-_", max_size=300), st.binary(max_size=100).map(encoded), st.sampled_from(["", "=", "."])
)
signatures = st.one_of(
    text,
    json_value,
    st.lists(part, max_size=4).map(".".join),
    st.builds(
        lambda header, other: f"{str(SIGNED.signature).split('.')[0] if header else other}..{other}",
        st.booleans(),
        part,
    ),
)


@fuzzed(80)
@given(signature=signatures)
def test_any_signature_but_the_right_one_is_refused(signature: object) -> None:
    data = with_signature(GOLDEN, signature)
    if signature not in (None, SIGNED.signature):
        strict = TrustPolicy(keys=trusting("first"))
        assert ours(lambda: verify_manifest(data, policy=strict, channel=LATEST, seen=None, now=NOW))


@fuzzed(60)
@given(
    header=st.one_of(json_value, mixed(alg=st.just("ES256"), kid=st.just(key("first").public.key_id), jwk=json_value))
)
def test_any_header_over_a_right_signature_is_the_one_that_we_write_or_refused(header: object) -> None:
    try:
        data = with_header(GOLDEN, header)
    except (ValueError, UnicodeEncodeError):
        return
    strict = TrustPolicy(keys=trusting("first"))
    if not ours(lambda: verify_manifest(data, policy=strict, channel=LATEST, seen=None, now=NOW)):
        assert header == {"alg": "ES256", "kid": key("first").public.key_id}


PEMS = [key("first").pem, key("first").public.pem]


@fuzzed(60)
@given(
    pem=st.one_of(
        junk,
        st.builds(
            lambda pem, at, byte: pem[:at] + bytes([byte]) + pem[at + 1 :],
            st.sampled_from(PEMS),
            st.integers(0, 240),
            st.integers(0, 255),
        ),
        st.builds(
            lambda name, data: (
                f"-----BEGIN {name}-----\n{base64.b64encode(data).decode()}\n-----END {name}-----\n".encode()
            ),
            st.sampled_from(["PUBLIC KEY", "PRIVATE KEY", "EC PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "CERTIFICATE"]),
            st.binary(max_size=150),
        ),
    )
)
def test_any_pem_is_a_key_or_a_settings_error_without_it(pem: bytes) -> None:
    for parse in (PublicKey.parse, PrivateKey.parse):
        said = ""
        try:
            parse(pem, setting="trusted_keys x")
        except SettingsError as error:
            said = str(error)
        body = pem.decode("latin-1").split("\n")
        assert not [line for line in body if len(line) > 30 and "-----" not in line and line in said]


RECORDS = {"model.onnx": FileRecord(size_bytes=1, sha256="0" * 64), "a/b": FileRecord(size_bytes=2, sha256="1" * 64)}
MODEL_SIGNATURE: dict[str, Any] = json.loads(model_signature.sign(RECORDS, name="x", key=key("first")))
SIGNATURE_PLACES = unassigns(MODEL_SIGNATURE)


@fuzzed(40)
@given(place=st.sampled_from(SIGNATURE_PLACES), forged=st.one_of(json_value, part, st.binary(max_size=60).map(encoded)))
def test_a_model_signature_with_anything_in_one_place_is_a_reason_and_no_crash(
    place: tuple[str | int, ...], forged: object
) -> None:
    value: Any = deepcopy(MODEL_SIGNATURE)
    inner = value
    for name in place[:-1]:
        inner = inner[name]
    changed = inner[place[-1]] != forged
    inner[place[-1]] = forged
    found = model_signature.problem(json.dumps(value).encode(), RECORDS, trusting("first"))
    if changed and place[-1] in {"payload", "payloadType", "sig"}:
        assert found is not None


@fuzzed(40)
@given(data=st.one_of(junk, json_value.map(lambda value: json.dumps(value).encode())))
def test_anything_in_place_of_a_model_signature_is_a_reason_and_no_crash(data: bytes) -> None:
    assert model_signature.problem(data, RECORDS, trusting("first")) is not None


number = st.sampled_from(["0.65", "-1", "1e308", "1e999", ".5", "5.", "+1", "nan", "inf", "0x1", "٣", "1_0", "", "-"])
criterion = st.one_of(
    text,
    st.lists(
        st.sampled_from(
            [
                "recall@20",
                "auc",
                "<=",
                ">=",
                "<",
                ">",
                "current",
                "-",
                "+",
                ",",
                "not worse than current by more than",
                " ",
                "off",
            ]
        )
        | number,
        max_size=7,
    ).map(" ".join),
    st.builds("recall@20 {} {}".format, st.sampled_from([">=", "<=", "<", ">"]), number),
    st.builds("recall@20 >= current {} {}".format, st.sampled_from(["+", "-"]), number),
)
metrics = st.dictionaries(
    st.one_of(text, st.sampled_from(["recall_at_20", "recall@20", "auc"])), st.floats(), max_size=3
)


@fuzzed(80)
@given(
    table=mixed(
        criteria=st.lists(criterion, max_size=3),
        mode=st.sampled_from(["enforce", "warn", "off"]),
        channels=st.lists(text, max_size=2),
    ),
    tags=st.dictionaries(
        st.one_of(
            text.map("supabase.gate.{}".format),
            st.sampled_from(["supabase.gate", "supabase.gate.", "supabase.gate.auc"]),
        ),
        criterion,
        max_size=4,
    ),
    own=metrics,
    current=metrics,
)
def test_any_criteria_tags_and_metrics_give_a_verdict_or_an_error_of_ours(
    table: dict[str, Any], tags: dict[str, str], own: dict[str, float], current: dict[str, float]
) -> None:
    parsed: list[Gate] = []
    ours(lambda: parsed.append(parse_gate(table)), InvalidGateError)
    found = with_tags(parsed[0] if parsed else None, tags)
    for baseline in (None, Baseline(name="v1", metrics=current)):
        verdict = judge(found, own, baseline)
        assert verdict.passed == (not verdict.reason)
        assert not (found.problems and verdict.passed)
        assert all(finding.value is not None for finding in verdict.findings if finding.passed)


PICKLES = [
    state_dict(),
    zip_archive({"a/data.pkl": b"\x80\x02}q\x00.", "a/b.pt": state_dict()}),
    *(path.read_bytes() for path in sorted(FILES.glob("*.pt"))),
]


@fuzzed(100)
@given(data=st.data(), original=st.sampled_from(PICKLES))
def test_a_mutated_archive_or_pickle_is_scanned_or_refused(data: st.DataObject, original: bytes) -> None:
    mutated = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        if data.draw(st.booleans()):
            mutated[at] = data.draw(st.integers(0, 255))
        else:
            mutated[at : at + data.draw(st.integers(0, 20))] = data.draw(st.binary(max_size=20))
        if not mutated:
            return
    ends = FileEnds(size_bytes=len(mutated), head=bytes(mutated), tail=b"")
    ours(lambda: check_state_dict(ends, "m.pt", allowed=()), ModelRejectedError)
