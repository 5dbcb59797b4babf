"""`Resolver`: resolve a reference to a release, pull its files, watch a channel, verify."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Literal, overload

from pydantic import SecretStr

from supabase_bridge.client.cache import Cache
from supabase_bridge.client.download import Files, FileVerdict
from supabase_bridge.client.hints import HintListener
from supabase_bridge.client.readers import open_reader
from supabase_bridge.client.release import PulledRelease, Release
from supabase_bridge.client.resolution import Reference, ReleaseResolution
from supabase_bridge.client.seen import SeenManifests
from supabase_bridge.client.usage import DatabaseTable, ProjectTable, UsageReporter, UsageTable
from supabase_bridge.client.watch import SHORTEST_INTERVAL, Watch
from supabase_bridge.core.documents import Manifest, Metrics, ModelMeta
from supabase_bridge.core.errors import SettingsError
from supabase_bridge.core.layout import META_NAME, METRICS_NAME, ChannelPaths, RunId
from supabase_bridge.settings.api_keys import kind_of_key
from supabase_bridge.settings.model import Settings
from supabase_bridge.trust.load import trust_policy
from supabase_bridge.trust.verify import TrustPolicy

_logger = logging.getLogger(__name__)


class Resolver:
    """Reads releases of one bucket: of a project (`url`), through `signed_urls`, or in a `directory`.

    It is thread-safe, connects when it needs to, and is a context manager that closes itself.

    Args:
        url: The project's URL. With `signed_urls` it only separates this project's stored state from another one's.
        key: A secret key, or the publishable key under a policy (docs/consumers.md); None: the bucket is public.
        bucket: The bucket's name.
        signed_urls: Returns a URL that reads the object with this key. It is called for each read; no key is sent.
        directory: The bucket as a directory: the embedded store.
        policy: The trusted keys and limits; by default every well-formed manifest is accepted.
        cache_dir: The directory of pulled releases and of the last accepted manifests. None: no release is cached, and
            manifests are kept in memory.
        cache_limit_bytes: The total size of the cached releases.
        timeout: The total time of a resolve. A file may take this, and the time for its size at `minimum_rate`.
        minimum_rate: Bytes per second; a slower download times out.
        realtime: Listen to hints of switches over Supabase Realtime while watching; needs `url` and a publishable key.
        usage: Reports the use of a release after each pull, and after each switch of a watch. The resolver closes it.
        clock: The time (aware).

    Raises:
        SettingsError: none of the three places is given, or several.
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        key: SecretStr | str | None = None,
        bucket: str = "models",
        signed_urls: Callable[[str], str] | None = None,
        directory: Path | None = None,
        policy: TrustPolicy | None = None,
        cache_dir: Path | None = None,
        cache_limit_bytes: int = 10_000_000_000,
        timeout: timedelta = timedelta(seconds=20),
        minimum_rate: int = 50_000,
        realtime: bool = False,
        usage: UsageReporter | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        secret = SecretStr(key) if isinstance(key, str) else key
        self._hints = (url, secret, bucket) if realtime and url and secret and signed_urls is None else None
        self._reader = open_reader(url=url, key=secret, bucket=bucket, signed_urls=signed_urls, directory=directory)
        self._usage = usage
        cache = None if cache_dir is None else Cache(cache_dir, limit_bytes=cache_limit_bytes)
        self._files = Files(self._reader, cache=cache, timeout=timeout, minimum_rate=minimum_rate)
        seen = SeenManifests(None if cache_dir is None else cache_dir / "seen", place=self._reader.name)
        self._resolution = ReleaseResolution(
            self._reader, policy=policy or TrustPolicy(), seen=seen, timeout=timeout, clock=clock
        )

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, *, signed_urls: Callable[[str], str] | None = None
    ) -> Resolver:
        """Make a resolver with the settings of the environment and of the settings file (docs/settings.md).

        Raises:
            SettingsError: a setting is malformed or contradicts another one.
        """
        return cls.from_settings(Settings.load(environ=environ, reading=True), signed_urls=signed_urls)

    @classmethod
    def from_settings(
        cls, settings: Settings, *, signed_urls: Callable[[str], str] | None = None, report: bool = True
    ) -> Resolver:
        """Make a resolver with these settings; it uses the secret key, else the publishable key, else no key.

        Args:
            report: Report the use of releases, if the settings switch that on. False: this is no consumer.

        Raises:
            SettingsError: a trusted key cannot be read, or reports have no place to go.
        """
        embedded = settings.embedded and signed_urls is None
        return cls(
            url=settings.supabase_url,
            key=None if signed_urls else settings.service_key or settings.anon_key,
            bucket=settings.bucket,
            signed_urls=signed_urls,
            directory=settings.home / "supabase" / settings.bucket if embedded else None,
            policy=trust_policy(settings),
            cache_dir=settings.cache_dir,
            cache_limit_bytes=settings.cache_limit_bytes,
            timeout=settings.request_timeout,
            realtime=settings.realtime,
            usage=_usage_reporter(settings) if report and settings.usage_reports else None,
        )

    @property
    def name(self) -> str:
        """The bucket's name, without any secret."""
        return self._reader.name

    def resolve(self, reference: str, *, channel: str | None = None, run_id: str | None = None) -> Release:
        """Return the release that `MODEL`, `MODEL@CHANNEL` or `MODEL/RUN_ID` names now.

        Raises:
            InvalidNameError: it is no reference.
            ChannelNotFoundError, ReleaseNotFoundError: it does not exist, or this consumer may not see it.
            ManifestRefusedError, ReleaseUnsignedError: it failed verification.
            DeadlineExceededError, StoreUnavailableError: the server did not answer in time, or is unavailable.
        """
        return self._resolution.resolve(Reference.parse(reference, channel=channel, run_id=run_id))

    def pull(
        self,
        release: str | Release,
        dest: Path | str | None = None,
        *,
        channel: str | None = None,
        run_id: str | None = None,
    ) -> PulledRelease:
        """Download the files of a release and compare each with its record; cached files are not downloaded again.

        Without `dest` the files are in the cache, which evicts the least recently used ones: open them soon. With
        `dest`, that directory holds exactly this release afterwards, or, after an error, what it held before. A process
        that is killed during the replacement may leave no directory; the next pull makes it. The files are read-only
        hard links to the cache, or copies if the file system has no links.

        Args:
            release: A reference, or a result of `resolve`.

        Raises:
            CorruptObjectError, ObjectNotFoundError: a file is not as recorded, or missing.
            LocalFileError: a file cannot be written, or `dest` holds other files or is a mount point.
            SettingsError: there is neither `dest` nor a cache.
            BridgeError: see `resolve`.
        """
        if isinstance(release, str):
            release = self.resolve(release, channel=channel, run_id=run_id)
        pulled = self._pull(release, dest)
        if self._usage is not None:
            self._usage.in_use(release)
        return pulled

    def _pull(self, release: Release, dest: Path | str | None = None) -> PulledRelease:
        if dest is None:
            directory = self._files.fetch(release)
        else:
            directory = Path(dest)
            self._files.install(release, directory)
        files = {name: directory / name for name in release.files}
        return PulledRelease(release=release, directory=directory, files=MappingProxyType(files))

    @overload
    def watch(
        self,
        reference: str,
        callback: Callable[[Release], object],
        *,
        interval: timedelta = ...,
        stop: threading.Event | None = ...,
        pull: Literal[False] = ...,
    ) -> Watch[Release]: ...

    @overload
    def watch(
        self,
        reference: str,
        callback: Callable[[PulledRelease], object],
        *,
        interval: timedelta = ...,
        stop: threading.Event | None = ...,
        pull: Literal[True],
    ) -> Watch[PulledRelease]: ...

    def watch(
        self,
        reference: str,
        callback: Callable[..., object],
        *,
        interval: timedelta = timedelta(seconds=30),
        stop: threading.Event | None = None,
        pull: bool = False,
    ) -> Watch[Release] | Watch[PulledRelease]:
        """Call back with the current release, and with each later one, from a thread until it is stopped; see `Watch`.

        With `realtime`, a poll follows each hint of a switch at once; while hints can arrive, other polls are rare.
        An outage is logged, and polls become less frequent. If it happens at the start, the watch reports the release
        that was current when the channel was last read.

        Args:
            reference: MODEL or MODEL@CHANNEL.
            callback: Called with a Release, or, with `pull`, with a PulledRelease after its files were downloaded. With
                `usage`, the release is reported to be in use when it returns, unless it raises or returns False.
            interval: Time between two polls; SHORTEST_INTERVAL at least.
            stop: Ends the watch when it is set, as do `stop()` and the end of a `with`.

        Raises:
            SettingsError: the interval is too short, or the reference names one release, which never changes.
            InvalidNameError: it is no reference.
        """
        wanted = Reference.parse(reference)
        if interval < SHORTEST_INTERVAL:
            raise SettingsError("interval", f"{SHORTEST_INTERVAL.total_seconds():g} second at least")
        if wanted.run_id is not None:
            raise SettingsError("watch", f"{wanted} is one release, which never switches; name a channel")

        def use(found: Release | PulledRelease) -> None:
            if callback(found) is not False and self._usage is not None:
                release = found.release if isinstance(found, PulledRelease) else found
                self._usage.in_use(release, alive=lambda: not watch.wait(timedelta(0)))

        watch: Watch[Any] = Watch(
            poll=lambda: self._resolution.resolve(wanted),
            prepare=self._pull if pull else _itself,
            callback=use,
            last_known=lambda: self._resolution.last_known(wanted.channel),
            interval=interval,
            stop=stop,
            listen=self._listener(wanted.channel),
        )
        return watch.start()

    def _listener(self, channel: ChannelPaths) -> Callable[[Callable[[], None]], HintListener] | None:
        """Return what makes a listener to the hints of a channel; None if they are off, or there is no key for them.

        The URL of the socket contains the key, and proxies log URLs, so a secret key is never used for it.
        """
        if self._hints is None:
            return None
        url, key, bucket = self._hints
        if kind_of_key(key.get_secret_value()).writes is True:
            _logger.warning("hints need the publishable key, and this consumer has a secret key; polling goes on")
            return None
        return lambda changed: HintListener(url=url, key=key, topic=channel.topic(bucket), changed=changed)

    def verify(self, release: Release) -> list[FileVerdict]:
        """Read every file of a release from the bucket, store none, and compare each with its record."""
        return self._files.verify(release)

    def copy(self, release: Release, name: str, path: Path) -> None:
        """Write one file of a release to `path`, compared with its record, as a copy that the caller may change.

        Raises:
            ObjectNotFoundError: the release has no such file, or it is missing.
            CorruptObjectError: it is not as recorded; `path` is unchanged.
            LocalFileError: `path` cannot be written.
        """
        self._files.copy(release, name, path)

    def meta(self, release: Release) -> ModelMeta:
        """Return the model_meta.json of a release, compared with its record.

        Raises:
            BridgeError: see `pull`; InvalidDocumentError: it is damaged.
        """
        return ModelMeta.parse(self._files.document(release, META_NAME))

    def metrics(self, release: Release) -> Metrics:
        """Return the metrics.json of a release, compared with its record.

        Raises:
            BridgeError: see `pull`; InvalidDocumentError: it is damaged.
        """
        return Metrics.parse(self._files.document(release, METRICS_NAME))

    def activation(self, release: Release, *, channel: str | None = None) -> Manifest | None:
        """Return the log entry by which a release became current, with the time and the cause; None if none is found.

        Args:
            channel: Whose log is searched; by default that of the release, or `latest`.

        Raises:
            BridgeError: see `resolve`.
        """
        paths = Reference.parse(release.model, channel=channel or release.channel).channel
        return self._resolution.activation(paths, RunId.parse(release.run_id))

    def close(self) -> None:
        """Close the connections; the resolver is not used afterwards. Waits 2 seconds at most for reports of use."""
        if self._usage is not None:
            self._usage.close()
        self._reader.close()

    def __enter__(self) -> Resolver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _usage_reporter(settings: Settings) -> UsageReporter:
    """Make the reporter of the settings: to the database that they name, else to the project.

    Raises:
        SettingsError: there is neither a database, nor a project with a key.
    """
    key = settings.service_key or settings.anon_key
    table: UsageTable
    if settings.usage_url is not None:
        table = DatabaseTable(url=settings.usage_url)
    elif settings.supabase_url is not None and key is not None:
        table = ProjectTable(url=settings.supabase_url, key=key)
    else:
        problem = "true, but there is no place to report to: set SUPABASE_BRIDGE_USAGE_URL, or SUPABASE_URL and a key"
        raise SettingsError("usage_reports", problem)
    name = settings.consumer_name or socket.gethostname()
    return UsageReporter(table, bucket=settings.bucket, consumer=name, interval=settings.usage_interval)


def _itself(release: Release) -> Release:
    return release
