"""The consumer's front door: resolve what a channel names, pull its files, watch for a switch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Literal, overload

from supabase_bridge.config import Settings
from supabase_bridge.consumer.files import Files, FileVerdict
from supabase_bridge.consumer.looking import Looking
from supabase_bridge.consumer.memory import Memory
from supabase_bridge.consumer.opening import open_reader
from supabase_bridge.consumer.reference import Reference
from supabase_bridge.consumer.release import PulledRelease, Release
from supabase_bridge.consumer.shelf import Shelf
from supabase_bridge.consumer.watching import Watch
from supabase_bridge.documents import Metrics, ModelMeta
from supabase_bridge.errors import SettingsError
from supabase_bridge.key_files import trust_policy
from supabase_bridge.layout import META_NAME, METRICS_NAME
from supabase_bridge.secret import Secret
from supabase_bridge.trust import TrustPolicy

SHORTEST_INTERVAL = timedelta(seconds=1)
"""No watch looks more often: a fleet of consumers shares one project."""


class Resolver:
    """Reads releases. Thread-safe; nothing is connected to before it is needed. A context manager that closes it.

    Exactly one place to read from: a project (`url`), `signed_urls`, or a `directory`.

    Args:
        url: The project's URL. With `signed_urls` it only tells this project's releases from another one's.
        key: The service key, or the anon key under a policy (docs/consumers.md); None: the bucket is public.
        bucket: The bucket's name.
        signed_urls: From an object's key to a URL that reads it; called for each read. No key is sent with it.
        directory: The bucket as a directory: the embedded store.
        policy: What is believed; by default every manifest that is in order.
        cache_dir: Where pulled releases are kept, and what was seen of each channel; None: both only in this process.
        cache_limit_bytes: How large the kept releases are together.
        timeout: How long a resolve may take in all; a file may take this and what its size needs at `minimum_rate`.
        minimum_rate: Bytes in a second; a slower server is given up.
        clock: The time (aware).

    Raises:
        SettingsError: the place is none, or is given twice.
    """

    def __init__(
        self,
        *,
        url: str | None = None,
        key: Secret | str | None = None,
        bucket: str = "models",
        signed_urls: Callable[[str], str] | None = None,
        directory: Path | None = None,
        policy: TrustPolicy | None = None,
        cache_dir: Path | None = None,
        cache_limit_bytes: int = 10_000_000_000,
        timeout: timedelta = timedelta(seconds=20),
        minimum_rate: int = 50_000,
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
    ) -> None:
        secret = Secret(key) if isinstance(key, str) else key
        self._reader = open_reader(url=url, key=secret, bucket=bucket, signed_urls=signed_urls, directory=directory)
        shelf = None if cache_dir is None else Shelf(cache_dir / "releases", limit_bytes=cache_limit_bytes)
        self._files = Files(self._reader, shelf=shelf, timeout=timeout, minimum_rate=minimum_rate)
        memory = Memory(None if cache_dir is None else cache_dir / "seen", place=self._reader.name)
        self._looking = Looking(
            self._reader, policy=policy or TrustPolicy(), memory=memory, timeout=timeout, clock=clock
        )

    @classmethod
    def from_env(
        cls, environ: Mapping[str, str] | None = None, *, signed_urls: Callable[[str], str] | None = None
    ) -> Resolver:
        """A resolver with the settings of the environment and of the settings file (docs/settings.md).

        Raises:
            SettingsError: one is malformed, or contradicts another one.
        """
        return cls.from_settings(Settings.load(environ=environ, reading=True), signed_urls=signed_urls)

    @classmethod
    def from_settings(cls, settings: Settings, *, signed_urls: Callable[[str], str] | None = None) -> Resolver:
        """A resolver with these settings: by the service key where they have one, else the anon key, else none.

        Raises:
            SettingsError: a trusted key cannot be read.
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
        )

    @property
    def name(self) -> str:
        """What a person calls the bucket, without any secret."""
        return self._reader.name

    def resolve(self, reference: str, *, channel: str | None = None, run_id: str | None = None) -> Release:
        """The release that `MODEL`, `MODEL@CHANNEL` or `MODEL/RUN_ID` names now; see `Looking.look` for the rest.

        Raises:
            InvalidReferenceError, InvalidModelKeyError, InvalidChannelError, InvalidRunIdError: it is no reference.
            ChannelNotFoundError, ReleaseNotFoundError: there is nothing, or it is hidden from this consumer.
            ManifestRefusedError, ReleaseUnsignedError: it is not believed.
            DeadlineExceededError, StoreUnavailableError: the server did not answer in time, or cannot now.
        """
        return self._looking.look(Reference.parse(reference, channel=channel, run_id=run_id))

    def pull(
        self,
        release: str | Release,
        dest: Path | str | None = None,
        *,
        channel: str | None = None,
        run_id: str | None = None,
    ) -> PulledRelease:
        """A release's files here, each one compared with its record; what is here already is not read again.

        Without `dest` they are in the cache: open them soon, since the cache forgets what was used least recently. With
        `dest`, that directory holds exactly this release afterwards, or, after an error, what it held before; a process
        that is killed while one takes the other's place leaves none, and the next pull makes it. Its files are
        read-only, and share their bytes with the cache where the file system allows it.

        Args:
            release: A reference, or what `resolve` gave.

        Raises:
            CorruptObjectError, ObjectNotFoundError: a file is not as recorded, or not there.
            LocalFileError: it cannot be written, or `dest` holds something else than a release or is a mount point.
            SettingsError: there is neither `dest` nor a cache.
            BridgeError: see `resolve`.
        """
        if isinstance(release, str):
            release = self.resolve(release, channel=channel, run_id=run_id)
        if dest is None:
            directory = self._files.keep(release)
        else:
            directory = Path(dest)
            self._files.deliver(release, directory)
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
        """Call back with what is current, and again after each switch, from a thread, until it is stopped; see `Watch`.

        An outage changes nothing: it is logged, and looked for less often. One at the start reports what was current
        when this cache last saw the channel.

        Args:
            reference: MODEL or MODEL@CHANNEL.
            callback: Gets a Release, or, with `pull`, a PulledRelease, once its files are here.
            interval: Between two looks; SHORTEST_INTERVAL at least.
            stop: Ends the watch when it is set, as do `stop()` and the end of a `with`.

        Raises:
            SettingsError: the interval is too short, or the reference names one release, which never switches.
            InvalidReferenceError, InvalidModelKeyError, InvalidChannelError: it is no reference.
        """
        wanted = Reference.parse(reference)
        if interval < SHORTEST_INTERVAL:
            raise SettingsError("interval", f"{SHORTEST_INTERVAL.total_seconds():g} second at least")
        if wanted.run_id is not None:
            raise SettingsError("watch", f"{wanted} is one release, which never switches; name a channel")
        return Watch(
            look=lambda: self._looking.look(wanted),
            prepare=self.pull if pull else _itself,
            callback=callback,
            fallback=lambda: self._looking.remembered(wanted.channel),
            interval=interval,
            stop=stop,
        ).start()

    def verify(self, release: Release) -> list[FileVerdict]:
        """Read every file of a release from the store, keep none, and hold each against its record."""
        return self._files.verify(release)

    def meta(self, release: Release) -> ModelMeta:
        """What the model is: its model_meta.json, compared with its record.

        Raises:
            BridgeError: see `pull`; InvalidDocumentError: it is damaged.
        """
        return ModelMeta.parse(self._files.document(release, META_NAME))

    def metrics(self, release: Release) -> Metrics:
        """What the evaluation found: its metrics.json, compared with its record.

        Raises:
            BridgeError: see `pull`; InvalidDocumentError: it is damaged.
        """
        return Metrics.parse(self._files.document(release, METRICS_NAME))

    def close(self) -> None:
        """Give back connections; the resolver is not used afterwards."""
        self._reader.close()

    def __enter__(self) -> Resolver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _itself(release: Release) -> Release:
    return release
