"""From the settings to keys: which files are read, what is refused, and that no key shows."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from supabase_bridge.core.errors import SettingsError
from supabase_bridge.settings.model import FILE_NAME, Settings
from supabase_bridge.trust.load import load_signing_policy, signer, trust_policy, write_new_key
from tests.support.commands import clean_environment
from tests.support.signatures import key

PROJECT = {"SUPABASE_URL": "https://abc.supabase.co"}


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A directory with the public keys of two names, and their private keys one level above."""
    directory = tmp_path / "keys"
    directory.mkdir()
    for name in ("first", "second"):
        (directory / f"{name}.pem").write_bytes(key(name).public.pem)
        private = tmp_path / f"{name}-private.pem"
        private.write_bytes(key(name).pem)
        private.chmod(0o600)
    return directory


def load(
    tmp_path: Path,
    toml: str = "",
    *,
    reading: bool = False,
    environ: Mapping[str, object] | None = None,
    **variables: object,
) -> Settings:
    (tmp_path / FILE_NAME).write_text(toml)
    return Settings.load(
        home=tmp_path,
        environ={name: str(value) for name, value in {**(environ or {}), **variables}.items()},
        reading=reading,
    )


def ids(*names: str) -> set[str]:
    return {key(name).public.key_id for name in names}


def test_without_keys_nothing_is_signed_and_nothing_required(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert (signer(settings), bool(load_signing_policy(settings).keys)) == (None, False)
    assert not trust_policy(settings).signature_required


def test_the_signing_key_comes_from_a_file_or_from_the_environment(tmp_path: Path, keys: Path) -> None:
    path = keys.parent / "first-private.pem"
    for settings in (
        load(tmp_path, SUPABASE_BRIDGE_SIGNING_KEY_FILE=path),
        load(tmp_path, SUPABASE_BRIDGE_SIGNING_KEY=key("first").pem.decode()),
        load(tmp_path, f'signing_key_file = "{path}"\n'),
    ):
        found = signer(settings)
        assert found is not None
        assert found.public == key("first").public
        assert "PRIVATE" not in repr(settings)


def test_a_signing_key_alone_is_trusted_by_the_one_who_signs(tmp_path: Path) -> None:
    settings = load(tmp_path, SUPABASE_BRIDGE_SIGNING_KEY=key("first").pem.decode())
    assert set(load_signing_policy(settings).keys.by_id) == ids("first")
    assert trust_policy(settings).signature_required


@pytest.mark.parametrize("given", ["directory", "files", "file and directory"])
def test_trusted_keys_are_files_or_directories(tmp_path: Path, keys: Path, given: str) -> None:
    (keys / "README").write_text("no key")
    first, second = keys / "first.pem", keys / "second.pem"
    paths = {"directory": [keys], "files": [first, second], "file and directory": [first, keys]}[given]
    listed = ", ".join(f'"{path}"' for path in paths)
    from_file = load(tmp_path, f"trusted_keys = [{listed}]\n")
    from_environment = load(tmp_path, SUPABASE_BRIDGE_TRUSTED_KEYS=":".join(map(str, paths)))
    for settings in (from_file, from_environment):
        assert set(trust_policy(settings).keys.by_id) == ids("first", "second")


def test_a_consumer_needs_neither_the_service_key_nor_a_signing_key(tmp_path: Path, keys: Path) -> None:
    environ: dict[str, Any] = {**PROJECT, "SUPABASE_BRIDGE_TRUSTED_KEYS": keys / "first.pem"}
    assert trust_policy(load(tmp_path, reading=True, environ=environ)).signature_required
    with pytest.raises(SettingsError, match="SUPABASE_SECRET_KEY"):
        load(tmp_path, environ=environ)


def test_the_policy_is_set_in_the_file_or_in_the_environment(tmp_path: Path, keys: Path) -> None:
    trusted = f'trusted_keys = ["{keys}"]\n'
    from_file = load(tmp_path, trusted + "require_signature = false\nmax_age = 3600\n")
    from_environment = load(
        tmp_path,
        trusted + "require_signature = true\nmax_age = 60\n",
        SUPABASE_BRIDGE_REQUIRE_SIGNATURE="false",
        SUPABASE_BRIDGE_MAX_AGE="3600",
    )
    for settings in (from_file, from_environment):
        policy = trust_policy(settings)
        assert (policy.signature_required, policy.max_age) == (False, timedelta(hours=1))


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"SUPABASE_BRIDGE_REQUIRE_SIGNATURE": "yes"}, "SUPABASE_BRIDGE_REQUIRE_SIGNATURE"),
        ({"SUPABASE_BRIDGE_REQUIRE_SIGNATURE": "true"}, "trusted_keys"),
        ({"SUPABASE_BRIDGE_MAX_AGE": "a day"}, "SUPABASE_BRIDGE_MAX_AGE"),
        ({"SUPABASE_BRIDGE_MAX_AGE": "nan"}, "SUPABASE_BRIDGE_MAX_AGE"),
        ({"SUPABASE_BRIDGE_MAX_AGE": "-1"}, "SUPABASE_BRIDGE_MAX_AGE"),
        ({"SUPABASE_BRIDGE_SIGNING_KEY": "x", "SUPABASE_BRIDGE_SIGNING_KEY_FILE": "y"}, "keep one"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, environ: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load(tmp_path, environ=environ)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('signing_key = "-----BEGIN"', "SUPABASE_BRIDGE_SIGNING_KEY"),
        ('trusted_keys = "a.pem"', "trusted_keys"),
        ('trusted_keys = [""]', "trusted_keys"),
        ('require_signature = "yes"', "require_signature"),
        ("max_age = 0", "max_age"),
    ],
)
def test_a_wrong_line_of_the_file_is_named(tmp_path: Path, line: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        load(tmp_path, line + "\n")


def test_a_key_that_everybody_on_the_machine_may_use_is_refused(tmp_path: Path, keys: Path) -> None:
    path = keys.parent / "first-private.pem"
    for mode in (0o604, 0o644, 0o602):
        path.chmod(mode)
        with pytest.raises(SettingsError, match="chmod 600"):
            signer(load(tmp_path, SUPABASE_BRIDGE_SIGNING_KEY_FILE=path))
    for mode in (0o400, 0o440, 0o640):
        path.chmod(mode)
        assert signer(load(tmp_path, SUPABASE_BRIDGE_SIGNING_KEY_FILE=path)) is not None


@pytest.mark.parametrize("setting", ["SUPABASE_BRIDGE_SIGNING_KEY_FILE", "SUPABASE_BRIDGE_TRUSTED_KEYS"])
@pytest.mark.parametrize("what", ["missing", "empty", "text", "endless"])
def test_a_file_that_holds_no_key_is_named(tmp_path: Path, setting: str, what: str) -> None:
    path = tmp_path / "key.pem"
    if what != "missing":
        path.write_text({"empty": "", "text": "hunter2 hunter2", "endless": "x" * 10_000_000}[what])
        path.chmod(0o600)
    with pytest.raises(SettingsError, match=r"key\.pem") as caught:
        load_signing_policy(load(tmp_path, environ={setting: path}))
    assert "hunter2" not in str(caught.value)


def test_a_directory_without_keys_trusts_nobody_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    with pytest.raises(SettingsError, match=r"no file \*\.pem"):
        trust_policy(load(tmp_path, SUPABASE_BRIDGE_TRUSTED_KEYS=tmp_path / "keys"))


@pytest.mark.parametrize("paths", [":", "::", " : "])
def test_a_variable_that_names_no_key_does_not_switch_trust_off(tmp_path: Path, keys: Path, paths: str) -> None:
    with pytest.raises(SettingsError, match="SUPABASE_BRIDGE_TRUSTED_KEYS"):
        load(tmp_path, f'trusted_keys = ["{keys}"]\n', SUPABASE_BRIDGE_TRUSTED_KEYS=paths)


def test_several_keys_in_one_file_are_refused_rather_than_all_but_the_first_forgotten(
    tmp_path: Path, keys: Path
) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes((keys / "first.pem").read_bytes() + (keys / "second.pem").read_bytes())
    with pytest.raises(SettingsError, match=r"both\.pem.*each a file"):
        trust_policy(load(tmp_path, SUPABASE_BRIDGE_TRUSTED_KEYS=both))


def test_a_signing_key_that_is_not_trusted_is_noticed_before_anything_is_signed(tmp_path: Path, keys: Path) -> None:
    settings = load(
        tmp_path,
        SUPABASE_BRIDGE_SIGNING_KEY=key("second").pem.decode(),
        SUPABASE_BRIDGE_TRUSTED_KEYS=keys / "first.pem",
    )
    with pytest.raises(SettingsError, match=key("second").public.key_id):
        load_signing_policy(settings)


def test_keys_without_the_library_for_model_signatures_are_an_error_that_names_the_extra(tmp_path: Path) -> None:
    code = (
        "import sys\nsys.modules['model_signing'] = None\n"
        "from pathlib import Path\nfrom supabase_bridge.settings.model import Settings\n"
        "from supabase_bridge.trust.errors import SigningError\n"
        "from supabase_bridge.trust.load import trust_policy, load_signing_policy\n"
        "settings = Settings.load(home=Path(sys.argv[1]))\n"
        "assert trust_policy(settings).keys\n"
        "try:\n    load_signing_policy(settings)\nexcept SigningError as error:\n    print(error)\n"
    )
    environment = clean_environment(tmp_path, {"SUPABASE_BRIDGE_SIGNING_KEY": key("first").pem.decode()})
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "pip install 'mlflow-supabase-bridge[signing]'" in done.stdout


def test_a_reader_that_trusts_no_key_loads_nothing_that_verifies_signatures(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom supabase_bridge.settings.model import Settings\n"
        "from supabase_bridge.trust.load import trust_policy\ntrust_policy(Settings.load(home=Path(sys.argv[1])))\n"
        "print([name for name in ('joserfc', 'cryptography', 'model_signing') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env=clean_environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "[]\n"


# --- new keys ---------------------------------------------------------------------------------------------------------


def test_a_new_private_key_is_readable_by_its_user_alone_and_works(tmp_path: Path) -> None:
    made = write_new_key(tmp_path / "new", "signing-key.pem")
    assert stat.S_IMODE(made.private.stat().st_mode) == 0o600
    settings = load(tmp_path, SUPABASE_BRIDGE_SIGNING_KEY_FILE=made.private, SUPABASE_BRIDGE_TRUSTED_KEYS=made.public)
    assert set(load_signing_policy(settings).keys.by_id) == {made.key_id}
    assert sorted(path.name for path in made.private.parent.iterdir()) == sorted([made.private.name, made.public.name])


def test_a_key_is_never_written_over(tmp_path: Path) -> None:
    before = write_new_key(tmp_path, "signing-key.pem").private.read_bytes()
    names = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(SettingsError, match="exists already"):
        write_new_key(tmp_path, "signing-key.pem")
    assert (tmp_path / "signing-key.pem").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == names
