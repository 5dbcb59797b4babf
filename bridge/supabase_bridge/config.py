"""The settings: argument beats environment beats file beats default; the only reader of the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from supabase_bridge.errors import SettingsError
from supabase_bridge.gates import Gate
from supabase_bridge.layout import check_channel
from supabase_bridge.outbox.events import DEFAULT_WORKSPACE
from supabase_bridge.secret import Secret
from supabase_bridge.settings_environment import settings_in_environment, user_cache
from supabase_bridge.settings_file import COUNTS, complaint, is_count, settings_in

FILE_NAME = "supabase-bridge.toml"
RESUMABLE_THRESHOLD_BYTES = 50_000_000
_STAGES = ("None", "Staging", "Production", "Archived")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that can be set. docs/settings.md lists each with its variable and its place in the file.

    Attributes:
        home: Where the embedded default keeps its database, artifacts and object store.
        supabase_url: The project's URL, without a trailing slash; None: the embedded object store is used.
        service_key: The project's service-role key.
        anon_key: The project's anon (or publishable) key, for a consumer that reads under a policy.
        bucket: The bucket of the releases.
        artifact_buckets: The buckets that MLflow may log artifacts to as `supabase://<bucket>/...`.
        database_url: MLflow's --backend-store-uri.
        artifacts_destination: Where MLflow's server keeps what clients log through it (mlflow-artifacts:/).
        tracking_uri: An MLflow server to read runs and files through, where the database alone does not do.
        allowed_sources: Roots, besides MLflow's own, below which a version's files may lie.
        stages: From an MLflow stage to the channel it switches.
        aliases: From an alias to the channel it switches.
        workspaces: From an MLflow workspace other than the default one to the bucket that is its own.
        poll_interval: How long an idle worker waits between two looks at an outbox whose database cannot wake it.
        concurrency: How many changes, of different models, a worker carries out at once.
        outbox_retention: How long finished changes are kept.
        lease: How long a silent worker keeps an event before another may take it.
        retry_cap: The longest pause between two attempts, whatever a server asks for.
        give_up_after: How long a failing event is retried before it becomes a dead letter.
        run_grace: How long a new version waits for its training run to end before it is mirrored all the same.
        reconcile_interval: How long after one pass that looks for what no event said the next one begins; 0: never.
        temporary_keys_age: How old what an upload left behind is before it is removed.
        watch_database_url: Where `watch-registry` keeps what it has seen.
        request_timeout: How long one storage request may stay silent, or below the minimum rate.
        resumable_threshold_bytes: A file larger than this is uploaded in chunks, which survive a broken connection.
        cache_dir: Where downloaded files of releases are kept by digest; None: nowhere, since there is no home.
        cache_limit_bytes: How large the files kept there are together; 0 keeps none.
        signing_key: The private key that manifests and releases are signed with, in PEM.
        signing_key_file: The file that holds it, where `signing_key` does not.
        trusted_keys: Files with public keys in PEM, or directories of such (*.pem), whose signatures are believed.
        require_signature: Whether an unsigned manifest is refused; None: it is where any key is trusted.
        max_age: How long ago a manifest may have been published to be believed; None: as long as it likes.
        gates: From a registered model's name, or its tag `supabase.key`, to the criteria that its versions must meet.
        gate_rollbacks: Whether a version that was current before is judged again when it is promoted again.
        allowed_pickle_globals: What a PyTorch file may name besides a state_dict's own: `module.name` or `module.*`.
        check_timeout: How long the checks of one version may take.
        check_memory_bytes: How much memory they may take, besides four times the size of the files.
    """

    home: Path = Path("mlruns")
    supabase_url: str | None = None
    service_key: Secret | None = None
    anon_key: Secret | None = None
    bucket: str = "models"
    artifact_buckets: tuple[str, ...] = ()
    database_url: str = field(default="", repr=False)  # It may hold a password.
    artifacts_destination: str = ""
    tracking_uri: str | None = field(default=None, repr=False)
    allowed_sources: tuple[str, ...] = ()
    stages: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({"Production": "latest", "Staging": "staging"})
    )
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    workspaces: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    poll_interval: timedelta = timedelta(seconds=1)
    concurrency: int = 1
    outbox_retention: timedelta = timedelta(days=90)
    lease: timedelta = timedelta(seconds=60)
    retry_cap: timedelta = timedelta(minutes=5)
    give_up_after: timedelta = timedelta(days=3)
    run_grace: timedelta = timedelta(hours=1)
    reconcile_interval: timedelta = timedelta(minutes=15)
    temporary_keys_age: timedelta = timedelta(hours=48)
    watch_database_url: str = field(default="", repr=False)  # It may hold a password.
    request_timeout: timedelta = timedelta(seconds=20)
    resumable_threshold_bytes: int = RESUMABLE_THRESHOLD_BYTES
    cache_dir: Path | None = None
    cache_limit_bytes: int = 10_000_000_000
    signing_key: Secret | None = None
    signing_key_file: Path | None = None
    trusted_keys: tuple[Path, ...] = ()
    require_signature: bool | None = None
    max_age: timedelta | None = None
    gates: Mapping[str, Gate] = field(default_factory=lambda: MappingProxyType({}))
    gate_rollbacks: bool = False
    allowed_pickle_globals: tuple[str, ...] = ()
    check_timeout: timedelta = timedelta(minutes=5)
    check_memory_bytes: int = 4_000_000_000

    @classmethod
    def load(
        cls,
        *,
        home: Path | None = None,
        environ: Mapping[str, str] | None = None,
        reading: bool = False,
        **arguments: Any,
    ) -> Settings:
        """The settings in force.

        Args:
            home: The home directory, where given on the command line.
            environ: The environment; the process's own by default.
            reading: True for a consumer, which only reads and needs no service key.
            arguments: Further settings by name; one that is None is as if it were not given.

        Raises:
            SettingsError: one is malformed, or contradicts another one.
        """
        environ = os.environ if environ is None else environ
        home, values = _from_file(environ, home)
        values.setdefault("cache_dir", user_cache(environ))
        values.update(settings_in_environment(environ))
        values.update({name: value for name, value in arguments.items() if value is not None})
        return _complete(cls(home=home, **values), reading=reading)

    @classmethod
    def for_registry(cls, environ: Mapping[str, str] | None = None) -> Settings:
        """The settings in force for a process that reaches no object store, such as an MLflow server without the key.

        Raises:
            SettingsError: one is malformed.
        """
        home, values = _from_file(os.environ if environ is None else environ, None)
        return _complete(cls(home=home, **{**values, "supabase_url": None}), reading=True)

    @property
    def embedded(self) -> bool:
        """True where releases go to a directory, not to a Supabase project."""
        return self.supabase_url is None

    @property
    def registry_uri(self) -> str:
        """MLflow's --registry-store-uri: the database through our plugin."""
        return f"supabase+{self.database_url}"

    @property
    def main_channel(self) -> str:
        """The channel that new releases are compared with, and that a gate stands before unless it says otherwise."""
        return self.stages.get("Production", "latest")

    def gate_of(self, model: str, model_key: str | None) -> Gate | None:
        """The gate of a model: by its name, else by its folder, which a rename in MLflow leaves as it is."""
        found = self.gates.get(model)
        return found if found is not None or model_key is None else self.gates.get(model_key)

    def bucket_of(self, workspace: str) -> str | None:
        """The bucket of a workspace's releases; None for a workspace that has none of its own."""
        return self.bucket if workspace == DEFAULT_WORKSPACE else self.workspaces.get(workspace)

    @property
    def release_buckets(self) -> frozenset[str]:
        """The buckets that hold releases: `supabase://` reads them, and only the worker writes them."""
        return frozenset({self.bucket, *self.workspaces.values()})

    @property
    def buckets(self) -> frozenset[str]:
        """The buckets that may be read at all."""
        return self.release_buckets | frozenset(self.artifact_buckets)


def _from_file(environ: Mapping[str, str], home: Path | None) -> tuple[Path, dict[str, Any]]:
    """The home directory, and what the settings file sets."""
    home = (home or Path(environ.get("SUPABASE_BRIDGE_HOME") or "mlruns")).absolute()
    given = environ.get("SUPABASE_BRIDGE_CONFIG")
    return home, settings_in(Path(given) if given else home / FILE_NAME, required=bool(given))


def _complete(settings: Settings, *, reading: bool) -> Settings:
    """Fill in what follows from the rest, and refuse contradictions."""
    home = settings.home
    if settings.supabase_url is not None:
        if not names_a_host(settings.supabase_url):
            raise SettingsError("SUPABASE_URL", "expected https://<project>.supabase.co (http:// for a local one)")
        if settings.service_key is None and not reading:
            raise SettingsError("SUPABASE_SERVICE_ROLE_KEY", "missing, while SUPABASE_URL names a project to write to")
    elif settings.service_key is not None:
        raise SettingsError("SUPABASE_URL", "missing (or SUPABASE_PROJECT_REF), while SUPABASE_SERVICE_ROLE_KEY is set")
    elif settings.anon_key is not None and reading:
        raise SettingsError("SUPABASE_URL", "missing (or SUPABASE_PROJECT_REF), while SUPABASE_ANON_KEY is set")
    for stage, channel in settings.stages.items():
        if stage not in _STAGES:
            raise SettingsError(f"[channels.stages] {stage}", f"no MLflow stage; there are {', '.join(_STAGES)}")
        check_channel(channel)
    for channel in settings.aliases.values():
        check_channel(channel)
    channels = {*settings.stages.values(), *settings.aliases.values()}
    for model, gate in settings.gates.items():
        if unmoved := sorted(set(gate.channels or ()) - channels):
            raise SettingsError(f"[gates.{model}] channels", f"no stage and no alias moves {unmoved[0]!r}")
    shared = [*settings.workspaces.values(), settings.bucket]
    if len(set(shared)) < len(shared):
        raise SettingsError("[workspaces]", "two workspaces share a bucket; each needs one of its own")
    if not is_count(settings.concurrency, COUNTS["concurrency"]):
        raise SettingsError("concurrency", complaint("concurrency"))
    if DEFAULT_WORKSPACE in settings.workspaces:
        raise SettingsError("[workspaces]", f"{DEFAULT_WORKSPACE!r} has the bucket that `bucket` names")
    if mixed := settings.release_buckets.intersection(settings.artifact_buckets):
        raise SettingsError("artifact_buckets", f"{min(mixed)!r} holds releases; artifacts need a bucket of their own")
    if settings.signing_key is not None and settings.signing_key_file is not None:
        raise SettingsError("SUPABASE_BRIDGE_SIGNING_KEY", "set beside SUPABASE_BRIDGE_SIGNING_KEY_FILE; keep one")
    signs = settings.signing_key is not None or settings.signing_key_file is not None
    if settings.require_signature and not settings.trusted_keys and not signs:
        raise SettingsError("require_signature", "true, while trusted_keys names no key to verify signatures with")
    return replace(
        settings,
        supabase_url=settings.supabase_url.rstrip("/") if settings.supabase_url else None,
        database_url=settings.database_url or f"sqlite:///{home / 'mlflow.db'}",
        artifacts_destination=settings.artifacts_destination or str(home / "artifacts"),
        watch_database_url=settings.watch_database_url or f"sqlite:///{home / 'watch.db'}",
    )


def child_environment(added: Mapping[str, str]) -> dict[str, str]:
    """This process's environment for one that it starts, with more in it."""
    return {**os.environ, **added}


def names_a_host(url: str) -> bool:
    """True for an http(s) URL without anything in it that could be a secret."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return named and parts.scheme in {"http", "https"} and not {"@", "?", "#"} & set(url)
