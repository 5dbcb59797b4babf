"""Which manifests a reader believes: signatures, order, age and paths."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supabase_bridge.core.documents import Manifest
from supabase_bridge.core.errors import BridgeError, InvalidDocumentError
from supabase_bridge.core.json_objects import canonical
from supabase_bridge.core.layout import ChannelPaths
from supabase_bridge.trust.errors import ManifestRefusedError, Refusal
from supabase_bridge.trust.keys import TrustedKeys
from supabase_bridge.trust.verify import CLOCK_SKEW, SeenManifest, TrustPolicy, verify_manifest
from tests.support.signatures import encoded, key, refused_because, signer, trusting, with_header, with_signature

GOLDEN = Path(__file__).parent.parent / "golden"
LATEST = ChannelPaths(model_key="two_tower", channel="latest")
PLAIN = Manifest.parse((GOLDEN / "manifest.json").read_bytes())
PUBLISHED = PLAIN.current.published_at
HEADER = {"alg": "ES256", "kid": key("first").public.key_id}
STRICT = TrustPolicy(keys=trusting("first"))
OPEN = TrustPolicy()


def look(
    data: bytes,
    *,
    policy: TrustPolicy = STRICT,
    channel: ChannelPaths = LATEST,
    seen: SeenManifest | None = None,
    now: datetime = PUBLISHED,
) -> Manifest:
    return verify_manifest(data, policy=policy, channel=channel, seen=seen, now=now)


def signed(name: str = "first", **changes: Any) -> Manifest:
    return signer(name).sign(PLAIN.model_copy(update=changes))


def altered(change: Callable[[dict[str, Any]], object], *, sign: bool = True) -> bytes:
    """The golden manifest with a change in its JSON, signed afterwards or not at all."""
    value = PLAIN.to_object()
    change(value)
    manifest = Manifest.from_object(value)
    return (signer("first").sign(manifest) if sign else manifest).to_bytes()


# --- signatures -------------------------------------------------------------------------------------------------------


def test_a_manifest_signed_by_a_trusted_key_is_believed() -> None:
    manifest = signed()
    assert look(manifest.to_bytes()) == manifest


def test_every_change_of_a_signed_manifest_is_noticed() -> None:
    """One leaf of the JSON at a time: another value, a missing member, and one more."""
    original = signed().to_object()
    count = 0
    for forged in _changes({name: value for name, value in original.items() if name != "signature"}):
        count += 1
        data = json.dumps({**forged, "signature": original["signature"]}).encode()
        with pytest.raises((ManifestRefusedError, InvalidDocumentError)) as caught:
            look(data)
        assert getattr(caught.value, "reason", Refusal.WRONG_SIGNATURE) is Refusal.WRONG_SIGNATURE
    assert count > 60


def test_other_white_space_and_another_order_of_members_do_not_break_a_signature() -> None:
    value = signed().to_object()
    shuffled = json.dumps(dict(reversed(value.items())), separators=(",", ":")).encode()
    assert look(shuffled).current == PLAIN.current


def test_an_unsigned_manifest_is_refused_where_a_key_is_trusted() -> None:
    with refused_because(Refusal.UNSIGNED, match="sign-manifest"):
        look(PLAIN.to_bytes())


def test_an_unsigned_manifest_is_believed_where_the_policy_says_so_or_trusts_no_key() -> None:
    assert look(PLAIN.to_bytes(), policy=OPEN) == PLAIN
    assert look(PLAIN.to_bytes(), policy=TrustPolicy(keys=trusting("first"), require_signature=False)) == PLAIN


def test_a_wrong_signature_is_refused_even_where_none_is_required() -> None:
    with refused_because(Refusal.UNKNOWN_KEY):
        look(signed("stranger").to_bytes(), policy=TrustPolicy(keys=trusting("first"), require_signature=False))


def test_a_required_signature_cannot_come_from_anybody_where_no_key_is_trusted() -> None:
    policy = TrustPolicy(require_signature=True)
    with refused_because(Refusal.UNKNOWN_KEY):
        look(signed().to_bytes(), policy=policy)
    with refused_because(Refusal.UNSIGNED):
        look(PLAIN.to_bytes(), policy=policy)


def test_the_key_of_a_stranger_is_not_trusted() -> None:
    with refused_because(Refusal.UNKNOWN_KEY) as caught:
        look(signed("stranger").to_bytes())
    assert key("stranger").public.key_id in caught.value.detail


def test_a_stranger_who_uses_the_id_of_a_trusted_key_is_found_out() -> None:
    with refused_because(Refusal.WRONG_SIGNATURE):
        look(with_header(PLAIN, HEADER, name="stranger"))


def test_the_signature_of_another_manifest_is_refused() -> None:
    other = signed(sequence=11)
    with refused_because(Refusal.WRONG_SIGNATURE):
        look(with_signature(PLAIN, other.signature))


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "HS256", "RS256", "ES384", "ES512", "EdDSA", "", None, 1, ["ES256"]]
)
def test_any_other_algorithm_than_es256_is_refused(algorithm: object) -> None:
    with refused_because(Refusal.ALGORITHM):
        look(with_header(PLAIN, {**HEADER, "alg": algorithm}))


def test_an_unsecured_jws_is_refused() -> None:
    header = encoded(json.dumps({**HEADER, "alg": "none"}).encode())
    for signature in (f"{header}..", f"{header}..AAAA"):
        with refused_because(Refusal.MALFORMED_SIGNATURE, Refusal.ALGORITHM):
            look(with_signature(PLAIN, signature))


def test_a_mac_with_the_public_key_as_its_secret_is_refused() -> None:
    first = encoded(json.dumps({**HEADER, "alg": "HS256"}).encode())
    text = f"{first}.{encoded(canonical(PLAIN.to_object(), 'manifest'))}".encode()
    mac = hmac.new(key("first").public.pem, text, hashlib.sha256).digest()
    with refused_because(Refusal.ALGORITHM):
        look(with_signature(PLAIN, f"{first}..{encoded(mac)}"))


@pytest.mark.parametrize(
    "more",
    [
        {"jwk": {"kty": "EC"}},
        {"jku": "https://example.com/keys"},
        {"x5u": "https://example.com/cert"},
        {"x5c": ["AAAA"]},
        {"b64": False},
        {"b64": False, "crit": ["b64"]},
        {"crit": []},
        {"typ": "JWT"},
    ],
    ids=lambda more: "+".join(more),
)
def test_a_header_that_brings_its_own_key_or_rules_is_refused(more: dict[str, object]) -> None:
    with refused_because(Refusal.MALFORMED_SIGNATURE):
        look(with_header(PLAIN, {**HEADER, **more}))


@pytest.mark.parametrize("header", [{"alg": "ES256"}, {"alg": "ES256", "kid": None}, {"alg": "ES256", "kid": 7}])
def test_a_header_without_a_key_id_is_refused(header: object) -> None:
    with refused_because(Refusal.MALFORMED_SIGNATURE):
        look(with_header(PLAIN, header))


MALFORMED = {
    "a number": 7,
    "an object": {"protected": "AAAA", "signature": "AAAA"},
    "empty": "",
    "no dots": "AAAA",
    "content that is not detached": "{header}.AAAA.{signature}",
    "four parts": "{header}..{signature}.AAAA",
    "padding": "{header}==..{signature}",
    "other base64": "{header}..+/+/",
    "a line break at the end": "{header}..{signature}\n",
    "a header that is no JSON": "AAAA..{signature}",
    "a header that is a list": "W10..{signature}",
    "a header with a member twice": "{twice}..{signature}",
    "a signature cut short": "{header}..{short}",
    "a signature of zeros": "{header}..{zeros}",
    "1 MB": "{header}..{long}",
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_signature_is_refused(what: str) -> None:
    header, _, signature = str(signed().signature).partition("..")
    text = MALFORMED[what]
    if isinstance(text, str):
        twice = encoded(b'{"alg":"none","alg":"ES256","kid":"' + HEADER["kid"].encode() + b'"}')
        text = text.format(
            header=header,
            signature=signature,
            short=signature[:-4],
            zeros=encoded(bytes(64)),
            twice=twice,
            long="A" * 900_000,
        )
    with refused_because(Refusal.MALFORMED_SIGNATURE, Refusal.WRONG_SIGNATURE):
        look(with_signature(PLAIN, text))


def test_a_number_on_which_readers_differ_is_refused_signed_or_not() -> None:
    with pytest.raises(InvalidDocumentError, match="canonical"):
        altered(lambda value: value.update(extra=2**53))
    with pytest.raises(InvalidDocumentError, match="canonical"):
        look(json.dumps({**signed().to_object(), "extra": 2**53}).encode())


def test_a_signed_manifest_without_the_digest_of_a_file_is_refused() -> None:
    def without(name: str) -> Callable[[dict[str, Any]], object]:
        return lambda value: value["current"]["files"].pop(name)

    for name in ("metrics.json", "model_meta.json", "two_tower_20251031T093831Z.onnx"):
        with refused_because(Refusal.UNRECORDED_FILE, match=name):
            look(altered(without(name)))


# --- which manifest ---------------------------------------------------------------------------------------------------


def test_the_manifest_of_another_channel_or_model_is_refused_whoever_signed_it() -> None:
    for other in (
        ChannelPaths(model_key="two_tower", channel="staging"),
        ChannelPaths(model_key="other", channel="latest"),
    ):
        with refused_because(Refusal.WRONG_MANIFEST, match="two_tower"):
            look(signed().to_bytes(), channel=other)


def test_an_older_manifest_than_one_seen_is_refused() -> None:
    seen = SeenManifest.of(signed(sequence=13))
    with refused_because(Refusal.ROLLBACK) as caught:
        look(signed(sequence=12).to_bytes(), seen=seen)
    assert "its sequence is 12, and 13 was seen before" in caught.value.detail


def test_the_manifest_seen_before_and_any_later_one_are_believed() -> None:
    seen = SeenManifest.of(signed(sequence=12))
    assert look(signed(sequence=12).to_bytes(), seen=seen).sequence == 12
    assert look(signed(sequence=14).to_bytes(), seen=seen).sequence == 14


def test_another_content_under_a_sequence_seen_before_is_refused() -> None:
    seen = SeenManifest.of(PLAIN)
    with refused_because(Refusal.FORK):
        look(signed(release_notes="another").to_bytes(), seen=seen)
    with refused_because(Refusal.FORK):
        look(PLAIN.model_copy(update={"previous": []}).to_bytes(), seen=seen, policy=OPEN)


def test_the_same_content_signed_again_by_another_key_is_the_same_manifest() -> None:
    policy = TrustPolicy(keys=trusting("first", "second"))
    assert look(signed("second").to_bytes(), seen=SeenManifest.of(signed("first")), policy=policy).sequence == 12


def test_an_old_manifest_is_refused_where_the_policy_sets_an_age() -> None:
    policy = TrustPolicy(keys=trusting("first"), max_age=timedelta(days=30))
    assert look(signed().to_bytes(), policy=policy, now=PUBLISHED + timedelta(days=30)).sequence == 12
    with refused_because(Refusal.EXPIRED, match="sign-manifest"):
        look(signed().to_bytes(), policy=policy, now=PUBLISHED + timedelta(days=30, seconds=1))
    assert look(signed().to_bytes(), now=PUBLISHED + timedelta(days=9999)).sequence == 12


def test_the_age_of_a_confirmed_manifest_counts_from_its_confirmation() -> None:
    policy = TrustPolicy(keys=trusting("first"), max_age=timedelta(days=30))
    confirmed = signed(confirmed_at=PUBLISHED + timedelta(days=29))
    assert look(confirmed.to_bytes(), policy=policy, now=PUBLISHED + timedelta(days=59)).sequence == 12
    with refused_because(Refusal.EXPIRED):
        look(confirmed.to_bytes(), policy=policy, now=PUBLISHED + timedelta(days=60))


def test_a_manifest_from_the_future_cannot_escape_the_age_limit() -> None:
    policy = TrustPolicy(keys=trusting("first"), max_age=timedelta(days=30))
    assert look(signed().to_bytes(), policy=policy, now=PUBLISHED - CLOCK_SKEW).sequence == 12
    with refused_because(Refusal.FROM_FUTURE):
        look(signed().to_bytes(), policy=policy, now=PUBLISHED - CLOCK_SKEW - timedelta(seconds=1))
    with refused_because(Refusal.FROM_FUTURE):
        look(signed(confirmed_at=datetime(9999, 1, 1, tzinfo=timezone.utc)).to_bytes(), policy=policy)


# --- paths ------------------------------------------------------------------------------------------------------------

ONNX = "two_tower/20251031T093831Z/two_tower_20251031T093831Z.onnx"
ELSEWHERE = [
    "other/20251031T093831Z/two_tower_20251031T093831Z.onnx",
    "two_tower/20241231T112233Z/two_tower_20241231T112233Z.onnx",
    "two_tower/20251031T093831Z/../../other/model.onnx",
    "two_tower/20251031T093831Z/model.onnx",
    "/" + ONNX,
    "./" + ONNX,
    ONNX.replace("/", "//", 1),
    ONNX.replace("/", "\\"),
    ONNX.replace("/", "%2f"),
    ONNX + "\0",
    ONNX + " ",
    ONNX.upper(),
    "https://example.com/" + ONNX,
    "file:///etc/passwd",
    "",
]


@pytest.mark.parametrize("sign", [True, False], ids=["signed", "unsigned"])
@pytest.mark.parametrize("path", ELSEWHERE)
@pytest.mark.parametrize("field", ["onnx_path", "meta_path", "metrics_path", "user_onnx_path", "item_onnx_path"])
@pytest.mark.parametrize("place", ["current", "previous"])
def test_a_path_that_is_not_exactly_the_releases_own_is_refused(place: str, field: str, path: str, sign: bool) -> None:
    def change(value: dict[str, Any]) -> None:
        (value["current"] if place == "current" else value["previous"][0])[field] = path

    with refused_because(Refusal.PATH) as caught:
        look(altered(change, sign=sign), policy=STRICT if sign else OPEN)
    assert f"{place}{'.0' if place == 'previous' else ''}.{field} is " in caught.value.detail


@pytest.mark.parametrize(
    "run_id", ["..", "latest", "20251031T093831Z/..", "20251031T093831Z-..", "20259931T093831Z", ""]
)
@pytest.mark.parametrize("place", ["current", "previous"])
def test_a_run_id_that_is_none_is_refused(place: str, run_id: str) -> None:
    def change(value: dict[str, Any]) -> None:
        (value["current"] if place == "current" else value["previous"][0])["run_id"] = run_id

    with refused_because(Refusal.PATH):
        look(altered(change))


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a//b", "a/./b", "a/../../b", ".", "..", "", "a\\b", "a\nb", "ä"]
)
def test_a_file_name_that_leads_out_of_the_release_is_refused(name: str) -> None:
    record = {"size_bytes": 1, "sha256": "0" * 64}
    with refused_because(Refusal.PATH):
        look(altered(lambda value: value["current"]["files"].update({name: record})))


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_is_replaced_without_a_moment_in_which_a_reader_refuses() -> None:
    """The order of a rotation: readers trust both, the writer changes over, readers drop the old one."""
    old, both, new = (TrustPolicy(keys=trusting(*names)) for names in (["old"], ["old", "new"], ["new"]))
    before, after = signed("old", sequence=12).to_bytes(), signed("new", sequence=13).to_bytes()
    seen = SeenManifest.of(look(before, policy=old))
    assert look(before, policy=both, seen=seen).sequence == 12
    assert look(after, policy=both, seen=seen).sequence == 13
    assert look(after, policy=new, seen=seen).sequence == 13
    with refused_because(Refusal.UNKNOWN_KEY):
        look(before, policy=new)
    with refused_because(Refusal.UNKNOWN_KEY):
        look(after, policy=old)


# --- documents of earlier versions ------------------------------------------------------------------------------------


def golden_policy() -> TrustPolicy:
    return TrustPolicy(keys=TrustedKeys.from_pem([(GOLDEN / "signing_key.pem").read_bytes()]))


def test_the_golden_signed_manifest_is_believed() -> None:
    data = (GOLDEN / "manifest_signed.json").read_bytes()
    manifest = look(data, policy=golden_policy())
    assert manifest.to_bytes() == data


def test_no_other_key_vouches_for_the_golden_signed_manifest() -> None:
    with refused_because(Refusal.UNKNOWN_KEY):
        look((GOLDEN / "manifest_signed.json").read_bytes())


# --- anything ---------------------------------------------------------------------------------------------------------

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=min(150, settings().max_examples), deadline=None)
@given(data=st.binary(max_size=200) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_a_server_sends_ends_in_one_of_our_errors(data: bytes) -> None:
    with pytest.raises(BridgeError):
        look(data)


@settings(max_examples=min(150, settings().max_examples), deadline=None)
@given(name=st.sampled_from(sorted(signed().to_object())), value=_JSON)
def test_whatever_stands_in_a_member_of_a_signed_manifest_ends_in_one_of_our_errors(name: str, value: object) -> None:
    original = signed().to_object()
    data = json.dumps({**original, name: value}).encode()
    try:
        look(data)
    except BridgeError:
        return
    assert value == original[name]


@settings(max_examples=min(150, settings().max_examples), deadline=None)
@given(text=st.text(max_size=60) | st.from_regex(r"[A-Za-z0-9_-]{1,60}\.\.[A-Za-z0-9_-]{1,90}", fullmatch=True))
def test_whatever_stands_as_a_signature_ends_in_one_of_our_errors(text: str) -> None:
    with pytest.raises(BridgeError):
        look(with_signature(PLAIN, text))


def _changes(value: Any) -> Iterator[Any]:
    """The value with one thing changed somewhere in it, in every way."""
    if isinstance(value, dict):
        yield {**value, "more": 1}
        for name, inner in value.items():
            yield {other: item for other, item in value.items() if other != name}
            yield from ({**value, name: changed} for changed in _changes(inner))
    elif isinstance(value, list):
        yield [*value, *value]
        for place, inner in enumerate(value):
            yield from ([*value[:place], changed, *value[place + 1 :]] for changed in _changes(inner))
    elif isinstance(value, str):
        yield value + "x"
    else:
        yield value + 1
