"""The settings: which source wins, what is refused, and that no secret shows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from supabase_bridge.core.errors import BridgeError, InvalidNameError, SettingsError
from supabase_bridge.settings.addresses import check_database_url
from supabase_bridge.settings.api_keys import superseded_variables
from supabase_bridge.settings.model import FILE_NAME, Settings
from supabase_bridge.settings.sources import child_environment

KEY = "service-role-key-nobody-may-see"
PROJECT = {"SUPABASE_URL": "https://abc.supabase.co", "SUPABASE_SECRET_KEY": KEY}


def load(home: Path, environ: Mapping[str, str] | None = None, *, toml: str = "", **arguments: Any) -> Settings:
    home.mkdir(exist_ok=True)
    (home / FILE_NAME).write_text(toml)
    return Settings.load(home=home, environ=environ or {}, **arguments)


def refused(home: Path, environ: Mapping[str, str] | None = None, *, toml: str = "") -> SettingsError:
    with pytest.raises(SettingsError) as caught:
        load(home, environ, toml=toml)
    assert KEY not in str(caught.value) + repr(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("environ", "keys"),
    [
        ({"SUPABASE_SERVICE_ROLE_KEY": "legacy", "SUPABASE_ANON_KEY": "anon"}, ("legacy", "anon")),
        ({"SUPABASE_SECRET_KEY": "new", "SUPABASE_PUBLISHABLE_KEY": "public"}, ("new", "public")),
        ({"SUPABASE_SERVICE_ROLE_KEY": "legacy", "SUPABASE_SECRET_KEY": "new"}, ("new", None)),
        ({"SUPABASE_SECRET_KEY": "new", "SUPABASE_SERVICE_ROLE_KEY": "legacy"}, ("new", None)),
        ({"SUPABASE_SECRET_KEY": " ", "SUPABASE_SERVICE_ROLE_KEY": "legacy"}, ("legacy", None)),
    ],
)
def test_each_key_has_a_legacy_name_and_the_new_one_takes_precedence(
    environ: dict[str, str], keys: tuple[str, str | None], tmp_path: Path
) -> None:
    settings = load(tmp_path, {"SUPABASE_URL": "https://abc.supabase.co", **environ})
    found = [key and key.get_secret_value() for key in (settings.service_key, settings.anon_key)]
    assert tuple(found) == keys


def test_an_ignored_key_is_named_only_where_another_one_is_in_force() -> None:
    both = {"SUPABASE_SECRET_KEY": "new", "SUPABASE_SERVICE_ROLE_KEY": "legacy"}
    assert superseded_variables(both) == {"SUPABASE_SERVICE_ROLE_KEY": "SUPABASE_SECRET_KEY"}
    assert superseded_variables({**both, "SUPABASE_SERVICE_ROLE_KEY": "new"}) == {}
    assert superseded_variables({**both, "SUPABASE_SECRET_KEY": ""}) == {}
    assert superseded_variables({"SUPABASE_ANON_KEY": "legacy"}) == {}


def test_a_child_process_gets_the_key_in_force_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPABASE_SECRET_KEY", "new")
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", "legacy")
    child = child_environment({"ADDED": "1"})
    assert child["SUPABASE_SECRET_KEY"] == "new"
    assert "SUPABASE_SERVICE_ROLE_KEY" not in child


def test_without_any_setting_everything_stays_in_the_home_directory(tmp_path: Path) -> None:
    settings = Settings.load(home=tmp_path, environ={})
    assert settings.embedded
    assert settings.database_url == f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert settings.registry_uri == f"supabase+sqlite:///{tmp_path / 'mlflow.db'}"
    assert settings.artifacts_destination == str(tmp_path / "artifacts")
    assert settings.stages == {"Production": "latest", "Staging": "staging"}
    assert settings.buckets == {"models"}


SOURCES = {
    "bucket": ("SUPABASE_BRIDGE_BUCKET", ("b-argument", "b-environment", "b-file"), "models"),
    "database_url": (
        "SUPABASE_BRIDGE_DATABASE_URL",
        ("sqlite:///argument", "sqlite:///environment", "sqlite:///file"),
        "sqlite:///{home}/mlflow.db",
    ),
    "artifacts_destination": (
        "SUPABASE_BRIDGE_ARTIFACTS_DESTINATION",
        ("/argument", "/environment", "/file"),
        "{home}/artifacts",
    ),
    "tracking_uri": ("SUPABASE_BRIDGE_TRACKING_URI", ("http://argument", "http://environment", "http://file"), None),
}


@pytest.mark.parametrize("name", SOURCES)
def test_argument_beats_environment_beats_file_beats_default(name: str, tmp_path: Path) -> None:
    variable, (argument, environment, file), default = SOURCES[name]
    toml = f'{name} = "{file}"'
    found = [
        load(tmp_path, {variable: environment}, toml=toml, **{name: argument}),
        load(tmp_path, {variable: environment}, toml=toml, **{name: None}),
        load(tmp_path, {variable: " "}, toml=toml),
        load(tmp_path, {}),
    ]
    expected = default and default.format(home=tmp_path)
    assert [getattr(settings, name) for settings in found] == [argument, environment, file, expected]


def test_the_home_directory_comes_from_argument_then_environment_then_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"SUPABASE_BRIDGE_HOME": str(tmp_path / "environment")}
    assert Settings.load(home=Path("argument"), environ=environ).home == tmp_path / "argument"
    assert Settings.load(environ=environ).home == tmp_path / "environment"
    assert Settings.load(environ={}).home == tmp_path / "mlruns"


def test_the_processs_own_environment_is_read_where_none_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUPABASE_BRIDGE_BUCKET", "of-the-process")
    assert Settings.load(home=tmp_path).bucket == "of-the-process"


def test_a_file_named_by_the_environment_is_read_instead_of_the_homes(tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text('bucket = "other"')
    environ = {"SUPABASE_BRIDGE_CONFIG": str(other)}
    assert load(tmp_path, environ, toml='bucket = "home"').bucket == "other"


def test_a_file_named_by_the_environment_must_be_there(tmp_path: Path) -> None:
    error = refused(tmp_path, {"SUPABASE_BRIDGE_CONFIG": str(tmp_path / "absent.toml")})
    assert error.setting == "SUPABASE_BRIDGE_CONFIG"


def test_a_project_reference_gives_the_url(tmp_path: Path) -> None:
    settings = load(tmp_path, {"SUPABASE_PROJECT_REF": "abcdef", "SUPABASE_SECRET_KEY": KEY})
    assert settings.supabase_url == "https://abcdef.supabase.co"
    assert not settings.embedded


def test_a_url_beats_a_project_reference(tmp_path: Path) -> None:
    settings = load(tmp_path, {**PROJECT, "SUPABASE_PROJECT_REF": "other"})
    assert settings.supabase_url == "https://abc.supabase.co"


def test_a_project_reference_in_the_environment_beats_a_url_in_the_file(tmp_path: Path) -> None:
    environ = {"SUPABASE_PROJECT_REF": "abcdef", "SUPABASE_SECRET_KEY": KEY}
    assert load(tmp_path, environ, toml='supabase_url = "https://file"').supabase_url == "https://abcdef.supabase.co"


@pytest.mark.parametrize("reference", ["evil.example/", "a@evil", "a-b", "abc.evil.example#"])
def test_a_project_reference_that_could_lead_elsewhere_is_refused(reference: str, tmp_path: Path) -> None:
    error = refused(tmp_path, {"SUPABASE_PROJECT_REF": reference, "SUPABASE_SECRET_KEY": KEY})
    assert error.setting == "SUPABASE_PROJECT_REF"


def test_a_url_loses_its_trailing_slash(tmp_path: Path) -> None:
    assert load(tmp_path, {**PROJECT, "SUPABASE_URL": "http://localhost:54321/"}).supabase_url == (
        "http://localhost:54321"
    )


@pytest.mark.parametrize(
    "url",
    [
        "abc.supabase.co",
        "ftp://abc.supabase.co",
        "https://",
        "https:///path",
        "https://[abc",
        "https://abc:port",
        f"https://user:{KEY}@abc.supabase.co",
        f"https://:{KEY}@abc.supabase.co",
        f"https://abc.supabase.co?apikey={KEY}",
        f"https://abc.supabase.co#{KEY}",
    ],
)
def test_a_url_that_names_no_plain_host_is_refused(url: str, tmp_path: Path) -> None:
    assert refused(tmp_path, {**PROJECT, "SUPABASE_URL": url}).setting == "SUPABASE_URL"


def test_a_url_without_a_key_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, {"SUPABASE_URL": "https://abc.supabase.co"}).setting == "SUPABASE_SECRET_KEY"


def test_a_key_without_a_url_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path, {"SUPABASE_SECRET_KEY": KEY}).setting == "SUPABASE_URL"


def test_a_secret_shows_only_where_it_is_asked_for() -> None:
    secret = SecretStr(KEY)
    shown = [repr(secret), str(secret), f"{secret}", f"{secret!r:>40}", "%s" % secret, repr([secret])]  # noqa: UP031
    assert not any(KEY in text for text in shown)
    assert secret.get_secret_value() == KEY
    assert secret == SecretStr(KEY)
    assert secret != SecretStr("other")
    assert len({secret, SecretStr(KEY)}) == 1


def test_settings_show_no_secret_in_whatever_form_they_are_shown(tmp_path: Path) -> None:
    password = "database-password-nobody-may-see"
    settings = load(
        tmp_path,
        PROJECT,
        database_url=f"postgresql://mlflow:{password}@db/mlflow",
        tracking_uri=f"https://user:{password}@mlflow",
    )
    as_dict = dict(settings)
    shown = [repr(settings), str(settings), f"{settings}", repr(settings.with_changes(bucket="b"))]
    assert not any(secret in text for secret in (KEY, password) for text in shown)
    assert KEY not in repr(as_dict) + json.dumps(as_dict, default=str)
    assert settings.service_key is not None
    assert settings.service_key.get_secret_value() == KEY


def test_settings_as_a_dictionary_show_no_key(tmp_path: Path) -> None:
    assert KEY not in repr(load(tmp_path, PROJECT).model_dump())


@pytest.mark.parametrize("toml", ['colour = "red"', "[channel]", '[channels.stage]\nProduction = "latest"', "home = 1"])
def test_an_unknown_setting_in_the_file_is_refused(toml: str, tmp_path: Path) -> None:
    error = refused(tmp_path, toml=toml)
    assert FILE_NAME in error.setting


def test_an_unknown_setting_is_answered_with_those_there_are(tmp_path: Path) -> None:
    problem = refused(tmp_path, toml='colour = "red"').problem
    assert "bucket" in problem
    assert "channels" in problem
    assert "service_key" not in problem


def test_a_secret_in_the_file_is_refused_and_not_repeated(tmp_path: Path) -> None:
    error = refused(tmp_path, toml=f'service_key = "{KEY}"')
    assert "SUPABASE_SECRET_KEY" in str(error)


@pytest.mark.parametrize(
    "toml",
    [
        "bucket = 1",
        'bucket = ""',
        'artifact_buckets = "a"',
        "allowed_sources = [1]",
        "workspaces = 1",
        "[workspaces]\na = 1",
        'channels = "latest"',
        "[channels.stages]\nProduction = 1",
        '[channels.stages]\nProduction = ""',
        "bucket = ",
        "\x00",
    ],
)
def test_a_setting_of_another_kind_is_refused(toml: str, tmp_path: Path) -> None:
    refused(tmp_path, toml=toml)


def test_seconds_in_the_file_become_spans_of_time(tmp_path: Path) -> None:
    names = ("poll_interval", "lease", "retry_cap", "give_up_after", "run_grace", "request_timeout")
    settings = load(tmp_path, toml="\n".join(f"{name} = {number + 0.5}" for number, name in enumerate(names)))
    assert [getattr(settings, name) for name in names] == [timedelta(seconds=n + 0.5) for n in range(len(names))]


@pytest.mark.parametrize("seconds", ["0", "-1", "true", '"60"', "nan", "inf", "1e300", "1e-9"])
def test_a_span_that_nobody_can_wait_for_is_refused(seconds: str, tmp_path: Path) -> None:
    assert "seconds" in refused(tmp_path, toml=f"lease = {seconds}").problem


@pytest.mark.parametrize("count", ["0", "65", "true", "1.5", '"2"'])
def test_a_concurrency_that_is_no_number_of_threads_is_refused(count: str, tmp_path: Path) -> None:
    assert "1 at least and 64 at most" in refused(tmp_path, toml=f"concurrency = {count}").problem


def test_channels_workspaces_and_lists_are_read_from_the_file(tmp_path: Path) -> None:
    settings = load(
        tmp_path,
        toml="""
            artifact_buckets = ["artifacts"]
            allowed_sources = ["/data"]
            [channels.stages]
            Production = "production"
            [channels.aliases]
            champion = "latest"
            [workspaces]
            research = "research-models"
        """,
    )
    assert settings.stages == {"Production": "production"}
    assert settings.aliases == {"champion": "latest"}
    assert settings.allowed_sources == ("/data",)
    assert settings.buckets == {"models", "artifacts", "research-models"}


@pytest.mark.parametrize(
    ("toml", "aliases", "main"),
    [
        ("", {"champion": "latest", "challenger": "staging"}, ("latest",)),
        ("channels = {aliases = {}}", {}, ("latest",)),
        ('channels = {aliases = {prod = "latest"}}', {"prod": "latest"}, ("latest",)),
        ('channels = {aliases = {champion = "live"}}', {"champion": "live"}, ("latest", "live")),
        ('channels = {stages = {Production = "live"}}', {"champion": "live"}, ("live",)),
        ("channels = {stages = {}}", {"champion": "latest", "challenger": "staging"}, ("latest",)),
        ('channels = {stages = {}, aliases = {champion = "live"}}', {"champion": "live"}, ("live",)),
    ],
)
def test_one_line_changes_or_ends_what_the_aliases_do_by_default(
    toml: str, aliases: dict[str, str], main: tuple[str, ...], tmp_path: Path
) -> None:
    settings = load(tmp_path, toml=toml)
    assert (dict(settings.aliases), settings.main_channels) == (aliases, main)


def test_the_mappings_of_settings_do_not_change(tmp_path: Path) -> None:
    for mapping in (Settings().stages, load(tmp_path, toml='[workspaces]\na = "b"').workspaces):
        with pytest.raises(TypeError):
            mapping["x"] = "y"  # type: ignore[index]  # what the test is about


def test_a_stage_that_mlflow_does_not_have_is_refused(tmp_path: Path) -> None:
    problem = refused(tmp_path, toml='[channels.stages]\nproduction = "latest"').problem
    assert "Production" in problem


@pytest.mark.parametrize("table", ['[channels.stages]\nProduction = "La/test"', '[channels.aliases]\nchampion = "1"'])
def test_a_channel_with_an_impossible_name_is_refused(table: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidNameError):
        load(tmp_path, toml=table)


@pytest.mark.parametrize("toml", ['[workspaces]\na = "shared"\nb = "shared"', '[workspaces]\na = "models"'])
def test_two_workspaces_never_share_a_bucket(toml: str, tmp_path: Path) -> None:
    assert refused(tmp_path, toml=toml).setting == "[workspaces]"


def test_settings_that_a_program_makes_itself_are_refused_in_the_same_way() -> None:
    with pytest.raises(SettingsError, match=r"^bucket: expected a text$"):
        Settings(bucket="")
    with pytest.raises(SettingsError, match=r"^database_url: expected a text$"):
        Settings(database_url="")
    with pytest.raises(SettingsError, match=r"^lease: expected a number of seconds"):
        Settings().with_changes(lease=0)
    with pytest.raises(SettingsError, match=r"^colour: "):
        Settings(colour="red")


def test_every_refusal_is_an_error_of_the_bridge_that_no_retry_mends() -> None:
    assert issubclass(SettingsError, BridgeError)
    assert not SettingsError.retryable


def test_the_default_workspace_has_its_bucket_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "supabase-bridge.toml").write_text('[workspaces]\ndefault = "other"\n')
    with pytest.raises(SettingsError, match="bucket"):
        Settings.load(home=tmp_path, environ={})


# --- gates ------------------------------------------------------------------------------------------------------------


def test_a_gate_goes_by_the_models_name_or_its_folder(tmp_path: Path) -> None:
    settings = load(tmp_path, toml='[gates.two_tower]\ncriteria = ["auc >= 0.88"]\nmode = "warn"')
    gate = settings.gates["two_tower"]
    assert (gate.criteria[0].text, gate.mode.value, gate.channels) == ("auc >= 0.88", "warn", None)
    assert settings.gate_of("two_tower", None) is gate
    assert settings.gate_of("renamed", "two_tower") is gate
    assert settings.gate_of("renamed", None) is None
    assert settings.gate_of("renamed", "another") is None


@pytest.mark.parametrize(
    ("toml", "where", "problem"),
    [
        ('[gates.m]\ncriteria = ["auc => 1"]', "[gates.m]", "'auc => 1': a criterion is"),
        ('[gates.m]\nmode = "on"', "[gates.m]", "a mode is enforce, warn or off"),
        ('[gates.m]\nlimits = ["auc >= 1"]', "[gates.m]", "no such setting of a gate"),
        ('[gates.m]\nchannels = ["canary"]', "[gates.m] channels", "no stage and no alias moves 'canary'"),
        ("gates = 1", "[gates]", "expected a table for each model"),
        ("[gates]\nm = 1", "[gates]", "expected a table for each model"),
        ("gate_rollbacks = 1", "gate_rollbacks", "expected true or false"),
        ("check_timeout = 0", "check_timeout", "expected a number of seconds"),
    ],
)
def test_a_malformed_gate_is_an_error_of_the_settings(toml: str, where: str, problem: str, tmp_path: Path) -> None:
    error = refused(tmp_path, toml=toml)
    assert error.setting.endswith(where)
    assert problem in error.problem


def test_a_process_without_the_key_can_read_the_gates(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('supabase_url = "https://x.supabase.co"\n[gates.m]\ncriteria = ["auc >= 1"]')
    environ = {"SUPABASE_BRIDGE_HOME": str(tmp_path), "SUPABASE_URL": "https://x.supabase.co"}
    settings = Settings.for_registry(environ)
    assert settings.gate_of("m", None) is not None
    assert settings.home == tmp_path


@pytest.mark.parametrize("key", ["too short", "the service key, which is long enough"])
def test_a_digest_key_is_a_long_secret_other_than_the_api_key_and_is_refused_unprinted(
    tmp_path: Path, key: str
) -> None:
    environ = {
        "SUPABASE_URL": "https://project.supabase.co",
        "SUPABASE_SECRET_KEY": "the service key, which is long enough",
        "SUPABASE_BRIDGE_DIGEST_KEY": key,
    }
    with pytest.raises(SettingsError, match="SUPABASE_BRIDGE_DIGEST_KEY") as refused:
        Settings.load(home=tmp_path, environ=environ)
    assert key not in str(refused.value)
    assert Settings.load(home=tmp_path, environ=environ | {"SUPABASE_BRIDGE_DIGEST_KEY": "x" * 32}).digest_key


@pytest.mark.parametrize(
    "address",
    ["https://abc.supabase.co/storage/v1", "https://abc.supabase.co/rest/v1/", "https://abc.supabase.co/storage/v1/s3"],
)
def test_the_address_of_one_of_the_projects_services_means_the_project(address: str, tmp_path: Path) -> None:
    environ = {"SUPABASE_URL": address, "SUPABASE_SECRET_KEY": "sb_secret_x"}
    assert Settings.load(home=tmp_path, environ=environ).supabase_url == "https://abc.supabase.co"


@pytest.mark.parametrize("host", ["supabase.com/dashboard", "app.supabase.com"])
def test_the_address_of_the_dashboard_is_answered_with_the_projects_own(host: str, tmp_path: Path) -> None:
    environ = {"SUPABASE_URL": f"https://{host}/project/abcdefgh/settings", "SUPABASE_SECRET_KEY": "sb_secret_x"}
    with pytest.raises(SettingsError, match=r"^SUPABASE_URL: .*dashboard.* is https://abcdefgh\.supabase\.co$"):
        Settings.load(home=tmp_path, environ=environ)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("postgres://u:hidden@h/d", "postgres:// is no scheme of SQLAlchemy's; write postgresql://"),
        ("mariadb://u:hidden@h/d", "write mysql+pymysql://"),
        ('"postgresql://u:hidden@h/d"', "begins with a quote"),
        ("'sqlite:////hidden/x.db'", "begins with a quote"),
        ("mssql+pyodbc://u:hidden@h/d", "'mssql' is not supported"),
        ("/hidden/mlflow.db", "expected <kind of database>://"),
    ],
)
def test_a_database_url_of_another_form_is_answered_with_the_right_scheme(url: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check_database_url(url)
    assert str(caught.value).startswith("SUPABASE_BRIDGE_DATABASE_URL: ")
    assert problem in str(caught.value)
    assert "hidden" not in str(caught.value)
