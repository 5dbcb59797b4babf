"""Keys in PEM, detached signatures over canonical JSON, and OpenSSF model signatures."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from supabase_bridge.core.documents import FileRecord, Manifest
from supabase_bridge.core.errors import InvalidDocumentError, SettingsError
from supabase_bridge.core.json_objects import canonical
from supabase_bridge.trust import jws, model_signature
from supabase_bridge.trust.errors import Refusal
from supabase_bridge.trust.keys import PrivateKey, PublicKey, TrustedKeys
from supabase_bridge.trust.signer import Signer
from tests.support.commands import clean_environment
from tests.support.signatures import encoded, key, refused_because, signer, trusting

GOLDEN = Path(__file__).parent.parent / "golden"
PLAIN = Manifest.parse((GOLDEN / "manifest.json").read_bytes())


def private_pem(made: object, *, password: bytes | None = None) -> bytes:
    assert isinstance(made, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey)
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    return made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden)


def public_pem(made: object) -> bytes:
    assert isinstance(made, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey)
    format = serialization.PublicFormat.SubjectPublicKeyInfo
    return made.public_key().public_bytes(serialization.Encoding.PEM, format)


P256 = ec.generate_private_key(ec.SECP256R1())
OTHERS = {
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "secp256k1": ec.generate_private_key(ec.SECP256K1()),
    "RSA": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "Ed25519": ed25519.Ed25519PrivateKey.generate(),
}
NO_KEYS = {"empty": b"", "text": b"not a key", "half": private_pem(P256)[:60], "binary": bytes(range(256))}


def refused(error: SettingsError, pem: bytes) -> str:
    """The error's message, which has no line of the key in it."""
    said = str(error) + repr(error)
    assert [line for line in pem.decode("latin-1").splitlines() if len(line) > 20 and line in said] == []
    return str(error)


# --- keys -------------------------------------------------------------------------------------------------------------


def test_a_key_id_is_the_rfc_7638_thumbprint_whichever_way_the_key_is_written() -> None:
    """The expected value is calculated from the RFC's own words, section 3.2: required members, in order, no spaces."""
    made = PrivateKey.parse(private_pem(P256), setting="key")
    numbers = made.jwk.as_dict(private=False)
    text = json.dumps({name: numbers[name] for name in ("crv", "kty", "x", "y")}, separators=(",", ":"))
    digest = encoded(hashlib.sha256(text.encode()).digest())
    sec1 = P256.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    assert made.public.key_id == digest
    assert PrivateKey.parse(sec1, setting="key").public.key_id == digest
    assert PublicKey.parse(public_pem(P256), setting="key").key_id == digest


def test_nothing_of_a_private_key_shows_in_a_repr_or_a_text() -> None:
    made = PrivateKey.generate()
    secret = made.jwk.as_dict(private=True)["d"]
    for shown in (repr(made), str(made), repr(Signer(key=made)), f"{Signer(key=made)}"):
        assert "PRIVATE" not in shown
        assert str(secret) not in shown


@pytest.mark.parametrize("kind", OTHERS)
def test_a_key_of_another_kind_is_refused(kind: str) -> None:
    with pytest.raises(SettingsError) as caught:
        PrivateKey.parse(private_pem(OTHERS[kind]), setting="the key")
    assert "P-256" in refused(caught.value, private_pem(OTHERS[kind]))
    with pytest.raises(SettingsError) as caught:
        PublicKey.parse(public_pem(OTHERS[kind]), setting="the key")
    assert "P-256" in str(caught.value)


@pytest.mark.parametrize("kind", NO_KEYS)
def test_what_is_no_key_is_refused(kind: str) -> None:
    for parse in (PrivateKey.parse, PublicKey.parse):
        with pytest.raises(SettingsError, match=r"the key: .*P-256") as caught:
            parse(NO_KEYS[kind], setting="the key")
        refused(caught.value, NO_KEYS[kind])


def test_a_public_key_cannot_sign_and_a_private_key_is_not_given_to_readers() -> None:
    with pytest.raises(SettingsError, match="signing needs its private half"):
        PrivateKey.parse(public_pem(P256), setting="the key")
    with pytest.raises(SettingsError, match="trust its public half") as caught:
        PublicKey.parse(private_pem(P256), setting="the key")
    refused(caught.value, private_pem(P256))


def test_an_encrypted_key_is_refused_with_the_reason() -> None:
    with pytest.raises(SettingsError, match="encrypted"):
        PrivateKey.parse(private_pem(P256, password=b"x"), setting="the key")


# --- manifests --------------------------------------------------------------------------------------------------------


def test_signing_changes_nothing_but_the_last_member() -> None:
    signed = signer("first").sign(PLAIN)
    assert list(signed.to_object())[-1] == "signature"
    assert signed.model_copy(update={"signature": None}) == PLAIN
    assert re.fullmatch(r"[A-Za-z0-9_-]+\.\.[A-Za-z0-9_-]{86}", str(signed.signature))


def test_a_signature_stays_last_where_there_are_unknown_members() -> None:
    manifest = Manifest.from_object({**PLAIN.to_object(), "zz": 1, "作成者": "推薦チーム"})
    assert list(signer("first").sign(manifest).to_object())[-1] == "signature"


def test_signing_again_replaces_the_signature() -> None:
    twice = signer("second").sign(signer("first").sign(PLAIN))
    content = PLAIN.to_object()
    found = jws.verify(str(twice.signature), canonical(content, "m"), trusting("first", "second"), document="m")
    assert found == key("second").public.key_id


def test_what_has_no_canonical_form_is_not_signed() -> None:
    with pytest.raises(InvalidDocumentError, match="canonical"):
        signer("first").sign(Manifest.from_object({**PLAIN.to_object(), "extra": -(2**53)}))


def test_canonical_json_is_that_of_rfc_8785() -> None:
    """The example of section 3.2.2, and the order of section 3.2.3."""
    given = json.loads(
        '{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],'
        '"string":"\\u20ac$\\u000F\\u000aA\'\\u0042\\u0022\\u005c\\\\\\"\\/","literals":[null,true,false]}'
    )
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical(given, "m") == expected.encode()
    names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
    ordered = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
    assert list(json.loads(canonical(dict.fromkeys(names), "m"))) == ordered


def test_a_signature_of_one_payload_is_none_of_another() -> None:
    signature = jws.sign(b"one", key("first"))
    assert jws.verify(signature, b"one", trusting("first"), document="m") == key("first").public.key_id
    with refused_because(Refusal.WRONG_SIGNATURE):
        jws.verify(signature, b"two", trusting("first"), document="m")


# --- model signatures -------------------------------------------------------------------------------------------------


def recorded(directory: Path) -> dict[str, FileRecord]:
    return {
        path.name: FileRecord(size_bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        for path in directory.iterdir()
        if path.name != "model.sig"
    }


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A small release's directory, signed by the first key."""
    directory = tmp_path / "20251031T093831Z"
    directory.mkdir()
    for name in ("model_meta.json", "metrics.json", "two_tower.onnx", "requirements.txt"):
        (directory / name).write_bytes(name.encode())
    signature = model_signature.sign(recorded(directory), name=directory.name, key=key("first"))
    (directory / "model.sig").write_bytes(signature)
    return directory


def test_the_projects_own_command_verifies_what_we_sign_and_refuses_what_was_changed(release: Path) -> None:
    public = release.parent / "public.pem"
    public.write_bytes(key("first").public.pem)
    command = Path(sys.executable).with_name("model_signing")
    signature = release / "model.sig"

    def verify() -> int:
        arguments: list[str | Path] = [command, "verify", "key", release]
        arguments += ["--signature", signature, "--public_key", public]
        done = subprocess.run(
            arguments, env=clean_environment(release.parent), capture_output=True, timeout=60, check=False
        )
        return done.returncode

    assert verify() == 0
    (release / "requirements.txt").write_bytes(b"requirements.txT")
    assert verify() != 0


def test_a_signature_of_these_files_by_a_trusted_key_is_believed(release: Path) -> None:
    signature = (release / "model.sig").read_bytes()
    assert model_signature.problem(signature, recorded(release), trusting("second", "first")) is None


def test_a_changed_a_missing_and_an_added_file_are_noticed(release: Path) -> None:
    signature, files = (release / "model.sig").read_bytes(), recorded(release)
    other = FileRecord(size_bytes=1, sha256="0" * 64)
    for forged in (
        {**files, "metrics.json": other},
        {name: record for name, record in files.items() if name != "metrics.json"},
        {**files, "more.txt": other},
    ):
        found = model_signature.problem(signature, forged, trusting("first"))
        assert found == "it is not of the files that the release records"


def test_the_model_signature_of_a_stranger_is_not_believed(release: Path) -> None:
    signature = (release / "model.sig").read_bytes()
    assert "not trusted" in str(model_signature.problem(signature, recorded(release), trusting("second")))
    assert "not trusted" in str(model_signature.problem(signature, recorded(release), TrustedKeys()))


def test_a_stranger_who_claims_a_trusted_key_in_a_model_signature_is_found_out(release: Path) -> None:
    files = recorded(release)
    bundle = json.loads(model_signature.sign(files, name="x", key=key("second")))
    bundle["verificationMaterial"] = json.loads((release / "model.sig").read_bytes())["verificationMaterial"]
    assert "changed" in str(model_signature.problem(json.dumps(bundle).encode(), files, trusting("first")))


def test_a_model_signature_that_lacks_any_part_is_a_reason_not_a_crash(release: Path) -> None:
    bundle = json.loads((release / "model.sig").read_bytes())
    files = recorded(release)
    broken = [b"", b"{}", b"[]", b"\xff", b"7", b'{"verificationMaterial": 7}']
    wrong: list[object] = [None, 7, "x", [], {}, [{}], "!!!"]
    for name in bundle:
        broken.append(json.dumps({other: value for other, value in bundle.items() if other != name}).encode())
        broken.extend(json.dumps({**bundle, name: value}).encode() for value in wrong)
    for name in bundle["dsseEnvelope"]:
        for value in wrong:
            broken.append(json.dumps({**bundle, "dsseEnvelope": {**bundle["dsseEnvelope"], name: value}}).encode())
    assert [data for data in broken if model_signature.problem(data, files, trusting("first")) is None] == []


def test_the_golden_model_signature_is_believed() -> None:
    keys = TrustedKeys.from_pem([(GOLDEN / "signing_key.pem").read_bytes()])
    files = {
        name: FileRecord(size_bytes=1, sha256=hashlib.sha256((GOLDEN / name).read_bytes()).hexdigest())
        for name in ("metrics.json", "model_meta.json")
    }
    assert model_signature.problem((GOLDEN / "model.sig").read_bytes(), files, keys) is None
