"""From the environment to a consumer: what it needs, what it refuses, and what it does not show."""

from __future__ import annotations

from pathlib import Path

import pytest

from supabase_bridge import Resolver
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.settings.model import Settings
from supabase_bridge.storage.factory import open_store
from supabase_bridge.trust.errors import Refusal
from tests.support.consumers import BUCKET, FIRST, MODEL, Bucket, new_signer
from tests.support.signatures import refused_because

URL = "https://abcdefgh.supabase.co"
ANON = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoiYW5vbiJ9.the-anon-key"


def test_without_settings_the_embedded_store_of_the_home_is_read(tmp_path: Path) -> None:
    Bucket.of_directory(tmp_path / "home" / "supabase" / BUCKET).promote(FIRST)
    with Resolver.from_env({"SUPABASE_BRIDGE_HOME": str(tmp_path / "home")}) as resolver:
        assert resolver.resolve(MODEL).run_id == FIRST


def test_trusted_keys_of_the_environment_are_asked_for(tmp_path: Path) -> None:
    bucket, signer = Bucket.of_directory(tmp_path / "home" / "supabase" / BUCKET), new_signer()
    bucket.promote(FIRST)
    (tmp_path / "key.pem").write_bytes(signer.public.pem)
    environ = {
        "SUPABASE_BRIDGE_HOME": str(tmp_path / "home"),
        "SUPABASE_BRIDGE_TRUSTED_KEYS": str(tmp_path / "key.pem"),
    }
    with Resolver.from_env(environ) as resolver, refused_because(Refusal.UNSIGNED):
        resolver.resolve(MODEL)
    bucket.signer = signer
    bucket.promote(FIRST)
    with Resolver.from_env(environ) as resolver:
        assert resolver.resolve(MODEL).signed


@pytest.mark.parametrize("key", [{}, {"SUPABASE_PUBLISHABLE_KEY": ANON}, {"SUPABASE_SECRET_KEY": ANON}])
def test_a_consumer_of_a_project_needs_its_url_alone(tmp_path: Path, key: dict[str, str]) -> None:
    environ = {"SUPABASE_URL": URL, "SUPABASE_BRIDGE_HOME": str(tmp_path), **key}
    assert Resolver.from_env(environ).name == f"Supabase abcdefgh.supabase.co bucket {BUCKET}"


def test_an_anon_key_without_a_project_is_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="SUPABASE_URL") as caught:
        Resolver.from_env({"SUPABASE_PUBLISHABLE_KEY": ANON, "SUPABASE_BRIDGE_HOME": str(tmp_path)})
    assert ANON not in str(caught.value)


def test_the_anon_key_is_not_in_the_settings_repr(tmp_path: Path) -> None:
    environ = {"SUPABASE_URL": URL, "SUPABASE_PUBLISHABLE_KEY": ANON}
    assert ANON not in repr(Settings.load(home=tmp_path, environ=environ, reading=True))


def test_the_anon_key_does_not_belong_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "supabase-bridge.toml").write_text(f'anon_key = "{ANON}"\n')
    with pytest.raises(SettingsError, match="SUPABASE_PUBLISHABLE_KEY"):
        Settings.load(home=tmp_path, environ={}, reading=True)


def test_a_key_with_impossible_characters_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError) as caught:
        Resolver(url=URL, key="a key\r\nX-Evil: 1")
    assert "Evil" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "ftp://h", "https://user:password@h", "https://h/?token=x", "http://"])
def test_a_url_that_is_none_or_has_a_secret_is_refused(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Resolver(url=url)
    assert "password" not in str(caught.value)


def test_a_resolver_reads_from_one_place(tmp_path: Path) -> None:
    for arguments in ({}, {"directory": tmp_path, "url": URL}, {"directory": tmp_path, "signed_urls": str}):
        with pytest.raises(SettingsError, match="one place"):
            Resolver(**arguments)  # type: ignore[arg-type]  # wrong on purpose


def test_settings_for_reading_open_no_store_to_write_to(tmp_path: Path) -> None:
    settings = Settings.load(
        home=tmp_path, environ={"SUPABASE_URL": URL, "SUPABASE_PUBLISHABLE_KEY": ANON}, reading=True
    )
    with pytest.raises(SettingsError, match="SUPABASE_SECRET_KEY"):
        open_store(settings, settings.bucket)
