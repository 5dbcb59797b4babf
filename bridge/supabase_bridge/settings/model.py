"""`Settings`: everything that can be set, and the rules between the settings."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

import pydantic
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, SecretStr, Strict

from supabase_bridge.core.consumers import ANY_CONSUMER, Consumers, parse_consumers
from supabase_bridge.core.criteria import Gate, parse_gate
from supabase_bridge.core.errors import InvalidGateError, SettingsError
from supabase_bridge.core.events import DEFAULT_WORKSPACE, Triggers, triggers_of
from supabase_bridge.core.layout import check_channel
from supabase_bridge.core.tags import MODEL_KEY_TAG, TRIAL_TAG
from supabase_bridge.settings.addresses import project_url
from supabase_bridge.settings.announce import Destinations, parse_announce
from supabase_bridge.settings.retention import Retention, parse_retention
from supabase_bridge.settings.sources import SECRETS, RawSettings, read_environment, read_file, user_cache
from supabase_bridge.settings.steps import Steps, StepSettings, parse_steps

FILE_NAME = "supabase-bridge.toml"

RESUMABLE_THRESHOLD_BYTES = 100_000_000

_STAGES = ("None", "Staging", "Production", "Archived")
_DEFAULT_STAGES = {"Production": "latest", "Staging": "staging"}
_ALIAS_OF_STAGE = {"Production": "champion", "Staging": "challenger"}

_LONGEST_SECONDS = 1e9

_SHORTEST_DIGEST_KEY = 32
"""Every reader of a bucket sees MACs, so a short key could be found by trying."""


def _seconds(least: float, *, never: bool = False) -> BeforeValidator:
    """Read a number of seconds; `never` allows 0."""

    def parse(value: Any) -> timedelta:
        if isinstance(value, timedelta):
            return value
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else -1
        if (never and number == 0) or least <= number <= _LONGEST_SECONDS:
            return timedelta(seconds=number)
        or_never = ", or 0 for never" if never else ""
        raise ValueError(f"expected a number of seconds, {least} at least and 1e9 at most{or_never}")

    return BeforeValidator(parse)


def _expand(value: Any) -> Any:
    """Make the absolute path of a text; paths are absolute already."""
    try:
        return Path(value).expanduser().absolute() if isinstance(value, str) and value else value
    except RuntimeError:
        raise ValueError("cannot expand '~': no such user") from None


def _gates(value: Any) -> Mapping[str, Gate]:
    """Parse the table of each model's gate."""
    if not isinstance(value, Mapping) or not all(isinstance(table, Mapping | Gate) for table in value.values()):
        raise SettingsError("[gates]", "expected a table for each model: [gates.two_tower]")
    gates: dict[str, Gate] = {}
    for model, table in value.items():
        try:
            gates[model] = table if isinstance(table, Gate) else parse_gate(table)
        except InvalidGateError as error:
            raise SettingsError(f"[gates.{model}]", str(error)) from error
    return MappingProxyType(gates)


def _models(value: Any) -> Mapping[str, Consumers]:
    """Parse the table of each model's consumers."""
    if not isinstance(value, Mapping) or not all(isinstance(table, Mapping | Consumers) for table in value.values()):
        raise SettingsError("[models]", "expected a table for each model: [models.two_tower]")
    models: dict[str, Consumers] = {}
    for model, table in value.items():
        try:
            models[model] = table if isinstance(table, Consumers) else parse_consumers(table)
        except ValueError as error:
            raise SettingsError(f"[models.{model}]", str(error)) from error
    return MappingProxyType(models)


_Name = Annotated[str, Field(min_length=1)]
_Text = Annotated[_Name, Field(description="a text")]
_OptionalText = Annotated[_Name | None, Field(description="a text")]
_Texts = Annotated[tuple[str, ...], Strict(False), Field(description="a list of texts")]
_AbsolutePath = Annotated[Path, BeforeValidator(_expand)]
_Path = Annotated[_AbsolutePath | None, Field(description="a text")]
_Paths = Annotated[tuple[_AbsolutePath, ...], Strict(False), Field(description="a list of texts")]
_Table = Annotated[
    Mapping[str, _Name],
    AfterValidator(MappingProxyType),
    PlainSerializer(dict),
    Field(description='lines of the form name = "text"'),
]
_Switch = Annotated[bool, Field(description="true or false")]
_Bytes = Annotated[int, Field(ge=0, description="a whole number of bytes, 0 at least")]
_Threads = Annotated[int, Field(ge=1, le=64, description="a whole number, 1 at least and 64 at most")]
_Seconds = Annotated[timedelta, _seconds(0.001)]


def _default_aliases(given: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the channels of `champion` and `challenger`: those of Production and Staging, or of their defaults."""
    stages = given.get("stages") or _DEFAULT_STAGES
    return {alias: stages[stage] for stage, alias in _ALIAS_OF_STAGE.items() if stage in stages}


class Settings(pydantic.BaseModel):
    """Everything that can be set. docs/settings.md documents each setting.

    The description of a field's type says what an error message expects.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)

    home: Path = Path("mlruns")
    supabase_url: _OptionalText = None
    service_key: SecretStr | None = None
    anon_key: SecretStr | None = None
    bucket: _Text = "models"
    artifact_buckets: _Texts = ()
    database_url: _Text = Field(default="", repr=False)  # It may hold a password.
    artifacts_destination: _Text = ""
    tracking_uri: _OptionalText = Field(default=None, repr=False)
    allowed_sources: _Texts = ()
    stages: _Table = Field(default_factory=lambda: MappingProxyType(_DEFAULT_STAGES))
    aliases: _Table = Field(default_factory=lambda given: MappingProxyType(_default_aliases(given)))
    workspaces: _Table = Field(default_factory=lambda: MappingProxyType({}))
    poll_interval: _Seconds = timedelta(seconds=1)
    concurrency: _Threads = 1
    outbox_retention: _Seconds = timedelta(days=90)
    lease: _Seconds = timedelta(seconds=60)
    retry_cap: _Seconds = timedelta(minutes=5)
    give_up_after: _Seconds = timedelta(days=3)
    run_grace: _Seconds = timedelta(hours=1)
    reconcile_interval: Annotated[timedelta, _seconds(0.001, never=True)] = timedelta(minutes=15)
    # A shorter time would remove an upload that a worker may still resume.
    temporary_keys_age: Annotated[timedelta, _seconds(86_400)] = timedelta(hours=48)
    watch_database_url: _Text = Field(default="", repr=False)  # It may hold a password.
    request_timeout: _Seconds = timedelta(seconds=20)
    resumable_threshold_bytes: _Bytes = RESUMABLE_THRESHOLD_BYTES
    realtime: _Switch = False
    usage_reports: _Switch = False
    usage_url: SecretStr | None = None
    usage_interval: Annotated[timedelta, _seconds(1)] = timedelta(minutes=15)
    consumer_name: _OptionalText = None
    cache_dir: _Path = None
    cache_limit_bytes: _Bytes = 10_000_000_000
    digest_key: SecretStr | None = None
    embeddings_url: SecretStr | None = None
    signing_key: SecretStr | None = None
    signing_key_file: _Path = None
    trusted_keys: _Paths = ()
    require_signature: Annotated[bool | None, Field(description="true or false")] = None
    max_age: _Seconds | None = None
    gates: Annotated[Mapping[str, Gate], pydantic.PlainValidator(_gates), PlainSerializer(dict)] = Field(
        default_factory=lambda: MappingProxyType({})
    )
    models: Annotated[Mapping[str, Consumers], pydantic.PlainValidator(_models), PlainSerializer(dict)] = Field(
        default_factory=lambda: MappingProxyType({})
    )
    steps: Annotated[Steps, pydantic.PlainValidator(parse_steps), PlainSerializer(dict)] = Field(
        default_factory=lambda: MappingProxyType({})
    )
    announce: Annotated[Destinations, pydantic.PlainValidator(parse_announce), PlainSerializer(dict)] = Field(
        default_factory=lambda: MappingProxyType({})
    )
    trusted_user_header: Annotated[str | None, Field(pattern=r"^[A-Za-z0-9-]+$", description="a header's name")] = None
    retention: Annotated[Retention, pydantic.PlainValidator(parse_retention), PlainSerializer(Retention.as_table)] = (
        Field(default_factory=Retention)
    )
    gate_rollbacks: _Switch = False
    refuse_rejected: _Switch = True
    allowed_pickle_globals: _Texts = ()
    trial_warnings: _Texts = ()
    check_timeout: _Seconds = timedelta(minutes=5)
    check_memory_bytes: _Bytes = 4_000_000_000

    def __init__(self, *, labels: Mapping[str, str] | None = None, **values: Any) -> None:
        """Validate the values.

        Args:
            labels: The names of settings in error messages, such as the variable that has the value.

        Raises:
            SettingsError: a value is malformed or contradicts another one.
        """
        try:
            super().__init__(**values)
        except pydantic.ValidationError as error:
            problem = error.errors(include_input=False, include_url=False)[0]
            name = str(problem["loc"][0])
            field = Settings.model_fields.get(name)
            text = f"expected {field.description}" if field and field.description else problem["msg"]
            if problem["type"] == "value_error":
                text = str(problem["ctx"]["error"])
            raise SettingsError((labels or {}).get(name, name), text) from None

    @classmethod
    def load(
        cls,
        *,
        home: Path | None = None,
        environ: Mapping[str, str] | None = None,
        reading: bool = False,
        **arguments: Any,
    ) -> Settings:
        """Load the settings in force: argument beats environment beats file beats default.

        Args:
            home: The home directory from the command line.
            environ: The environment; by default that of the process.
            reading: True for a client, which only reads and needs no secret key.
            arguments: Further settings by name; None means that the setting is not given.

        Raises:
            SettingsError: a setting is malformed or contradicts another one.
        """
        environ = os.environ if environ is None else environ
        home, raw = _home_and_file(environ, home)
        raw = {"cache_dir": ("cache_dir", user_cache(environ)), **raw, **read_environment(environ)}
        raw.update({name: (name, value) for name, value in arguments.items() if value is not None})
        settings = cls._of_raw(home, raw)
        if settings.supabase_url is not None:
            if settings.service_key is None and not reading:
                problem = "missing, while SUPABASE_URL names a project to write to"
                raise SettingsError(SECRETS["service_key"], problem)
        elif settings.service_key is not None or (settings.anon_key is not None and reading):
            key, _ = raw["anon_key" if settings.service_key is None else "service_key"]
            raise SettingsError("SUPABASE_URL", f"missing (or SUPABASE_PROJECT_REF), while {key} is set")
        return settings

    @classmethod
    def for_registry(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """Load the settings for a process that uses no object store, such as an MLflow server without the key.

        Raises:
            SettingsError: a setting is malformed.
        """
        home, raw = _home_and_file(os.environ if environ is None else environ, None)
        raw.pop("supabase_url", None)
        return cls._of_raw(home, raw)

    @classmethod
    def _of_raw(cls, home: Path, raw: RawSettings) -> Settings:
        values = {
            "home": home,
            "database_url": f"sqlite:///{home / 'mlflow.db'}",
            "artifacts_destination": str(home / "artifacts"),
            "watch_database_url": f"sqlite:///{home / 'watch.db'}",
            **{name: value for name, (_, value) in raw.items()},
        }
        return cls(labels={name: label for name, (label, _) in raw.items()}, **values)

    def with_changes(self, **changes: Any) -> Settings:
        """Return these settings with other values, which are validated.

        Raises:
            SettingsError: a value is malformed or contradicts another one.
        """
        return Settings(**{**{name: getattr(self, name) for name in self.model_fields_set}, **changes})

    @pydantic.field_validator("supabase_url")
    @classmethod
    def _check_url(cls, url: str | None) -> str | None:
        return None if url is None else project_url(url)

    @pydantic.model_validator(mode="after")
    def _check_channels(self) -> Settings:
        for stage in self.stages:
            if stage not in _STAGES:
                raise SettingsError(f"[channels.stages] {stage}", f"no MLflow stage; there are {', '.join(_STAGES)}")
        channels = {*self.stages.values(), *self.aliases.values()}
        for channel in channels:
            check_channel(channel)
        for model, gate in self.gates.items():
            if unmoved := sorted(set(gate.channels or ()) - channels):
                raise SettingsError(f"[gates.{model}] channels", f"no stage and no alias moves {unmoved[0]!r}")
        for channel in (channel for steps in self.steps.values() for step in steps for channel in step.channels):
            check_channel(channel)
        return self

    @pydantic.model_validator(mode="after")
    def _check_buckets(self) -> Settings:
        shared = [*self.workspaces.values(), self.bucket]
        if len(set(shared)) < len(shared):
            raise SettingsError("[workspaces]", "two workspaces share a bucket; each needs one of its own")
        if DEFAULT_WORKSPACE in self.workspaces:
            raise SettingsError("[workspaces]", f"{DEFAULT_WORKSPACE!r} has the bucket that `bucket` names")
        if mixed := self.release_buckets.intersection(self.artifact_buckets):
            problem = f"{min(mixed)!r} holds releases; artifacts need a bucket of their own"
            raise SettingsError("artifact_buckets", problem)
        if mixed := self.retention.archive_buckets & self.buckets:
            raise SettingsError("[retention] archive_bucket", f"{min(mixed)!r} is in use already; name another bucket")
        return self

    @pydantic.model_validator(mode="after")
    def _check_keys(self) -> Settings:
        if self.signing_key is not None and self.signing_key_file is not None:
            raise SettingsError("SUPABASE_BRIDGE_SIGNING_KEY", "set beside SUPABASE_BRIDGE_SIGNING_KEY_FILE; keep one")
        if self.digest_key is not None:
            if len(self.digest_key.get_secret_value()) < _SHORTEST_DIGEST_KEY:
                problem = f"expected a random text of {_SHORTEST_DIGEST_KEY} characters at least"
                raise SettingsError("SUPABASE_BRIDGE_DIGEST_KEY", problem)
            if self.digest_key in (self.service_key, self.anon_key):
                problem = "the same as an API key; make a random secret of its own, which stays when API keys change"
                raise SettingsError("SUPABASE_BRIDGE_DIGEST_KEY", problem)
        signs = self.signing_key is not None or self.signing_key_file is not None
        if self.require_signature and not self.trusted_keys and not signs:
            raise SettingsError("require_signature", "true, while trusted_keys names no key to verify signatures with")
        return self

    @cached_property
    def triggers(self) -> tuple[Triggers, ...]:
        """The stages and aliases of each channel."""
        return triggers_of(stages=self.stages, aliases=self.aliases)

    @property
    def embedded(self) -> bool:
        """Return whether releases go to a directory instead of a Supabase project."""
        return self.supabase_url is None

    @property
    def names_artifacts(self) -> bool:
        """True if the operator named an artifacts_destination; the default gives way to the MLflow server's own."""
        return self.artifacts_destination != str(self.home / "artifacts")

    @property
    def registry_uri(self) -> str:
        """MLflow's --registry-store-uri: the database through our plugin."""
        return f"supabase+{self.database_url}"

    @property
    def main_channels(self) -> tuple[str, ...]:
        """The channels of stage Production and of alias `champion`: a gate without `channels` is about these.

        New releases are compared with the current release of the first one.
        """
        found = (self.stages.get("Production"), self.aliases.get("champion"))
        return tuple(dict.fromkeys(channel for channel in found if channel is not None)) or ("latest",)

    def gate_of(self, model: str, model_key: str | None) -> Gate | None:
        """Return the gate of a model by its name, else by its folder, which a rename in MLflow does not change."""
        found = self.gates.get(model)
        return found if found is not None or model_key is None else self.gates.get(model_key)

    def consumers_of(self, model: str, model_key: str | None) -> Consumers:
        """Return the declared consumers of a model, found as in `gate_of`."""
        return self.models.get(model) or self.models.get(model_key or "", ANY_CONSUMER)

    def steps_of(self, model: str | None, model_key: str, channel: str) -> tuple[StepSettings, ...]:
        """Return the steps before an activation, by the registered model's name, else by its folder."""
        found = self.steps.get(model or model_key) or self.steps.get(model_key, ())
        return tuple(step for step in found if not step.channels or channel in step.channels)

    def trial_warns(self, model: str, tags: Mapping[str, str]) -> bool:
        """True where a failed trial of a model's version is only a note: by the model's tag, else by its name."""
        if TRIAL_TAG in tags:
            return tags[TRIAL_TAG] == "warn"
        return model in self.trial_warnings or tags.get(MODEL_KEY_TAG) in self.trial_warnings

    def bucket_of(self, workspace: str) -> str | None:
        """Return the bucket of a workspace's releases; None if the settings name none."""
        return self.bucket if workspace == DEFAULT_WORKSPACE else self.workspaces.get(workspace)

    def split_subject(self, subject: str) -> tuple[str, str | None]:
        """Split MODEL@CHANNEL; None: it names no channel. A model's own name may have an @ too."""
        model, separator, channel = subject.rpartition("@")
        named = separator and channel in {item.channel for item in self.triggers}
        return (model, channel) if named else (subject, None)

    @property
    def release_buckets(self) -> frozenset[str]:
        """The buckets that hold releases: `supabase://` reads them, and only the worker writes them."""
        return frozenset({self.bucket, *self.workspaces.values()})

    @property
    def buckets(self) -> frozenset[str]:
        """The buckets that may be read at all."""
        return self.release_buckets | frozenset(self.artifact_buckets)


_FILE_SETTINGS = Settings.model_fields.keys() - {"home", "stages", "aliases", *SECRETS}


def _home_and_file(environ: Mapping[str, str], home: Path | None) -> tuple[Path, RawSettings]:
    """Return the home directory, and the settings of the file."""
    home = (home or Path(environ.get("SUPABASE_BRIDGE_HOME") or "mlruns")).absolute()
    given = environ.get("SUPABASE_BRIDGE_CONFIG")
    path = Path(given) if given else home / FILE_NAME
    return home, read_file(path, names=_FILE_SETTINGS, required=bool(given))
