"""Every error the bridge raises, by cause: facts are attributes, the message says what to do."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import ClassVar

_USER_AND_PASSWORD = re.compile(r"(?<=://)[^\s/@'\"]*@")
_SECRET_IN_QUERY = re.compile(
    r"(?<![A-Za-z])((?:password|passwd|pwd|token|secret|api_?key|sig|signature)=)[^\s&;'\")]+", re.IGNORECASE
)


def without_credentials(text: str) -> str:
    """A text without the user names, passwords and tokens of the URLs that it quotes."""
    return _SECRET_IN_QUERY.sub(r"\1***", _USER_AND_PASSWORD.sub("***@", text))


class BridgeError(Exception):
    """The root of all errors of the bridge.

    Attributes:
        retryable: True where the same call may succeed later with nothing changed by hand on our side (the network, the
            server, a key that is being rotated). The worker backs off and tries again; everything else is given up at
            once, with its reason.
        rejects: True where the version itself is at fault: its files did not pass a check.
    """

    retryable: ClassVar[bool] = False
    rejects: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        # It goes to logs, to terminals and into tags that everybody sees; what MLflow or a driver says of a failure
        # quotes the URL that was asked, and that may hold a password.
        super().__init__(without_credentials(message))


# --- settings ---------------------------------------------------------------------------------------------------------


class SettingsError(BridgeError):
    """A setting is missing, malformed or contradicts another one."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"{setting}: {problem}")
        self.setting = setting
        self.problem = problem


class InvalidGateError(BridgeError):
    """A release criterion, or a gate's mode, is malformed."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"{text[:80]!r}: {reason}")
        self.text = text
        self.reason = reason


# --- names and documents ----------------------------------------------------------------------------------------------


class InvalidModelKeyError(BridgeError):
    """A registered model's name (or its tag `supabase.key`) cannot be a folder in Supabase Storage."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(
            f"model {name!r} cannot be a folder in Supabase Storage: {reason}. "
            "Set the registered model's tag supabase.key to a name made of letters, digits, '_', '-' and '.'"
        )
        self.name = name
        self.reason = reason


class InvalidChannelError(BridgeError):
    """A channel's name cannot be used."""

    def __init__(self, channel: str) -> None:
        super().__init__(
            f"{channel[:80]!r} cannot be a channel: "
            "use lower-case letters, digits, '_' and '-', beginning with a letter"
        )
        self.channel = channel


class InvalidRunIdError(BridgeError):
    """A text is not a release's run_id."""

    def __init__(self, text: str) -> None:
        super().__init__(
            f"{text[:80]!r} is not a run_id: expected the UTC time YYYYMMDDTHHMMSSZ, "
            "optionally followed by '-' and letters, digits, '.', '_' or '-' (20251031T093831Z, 20251031T093831Z-ci42)"
        )
        self.text = text


class InvalidObjectKeyError(BridgeError):
    """Supabase Storage does not accept a key."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(f"object key {key[:200]!r} is not accepted by Supabase Storage: {reason}")
        self.key = key
        self.reason = reason


class InvalidDocumentError(BridgeError):
    """A JSON document is malformed, too large, or breaks its schema."""

    def __init__(self, document: str, reason: str) -> None:
        super().__init__(f"{document} is not valid: {reason}")
        self.document = document
        self.reason = reason


# --- object stores ----------------------------------------------------------------------------------------------------


class ObjectStoreError(BridgeError):
    """The root of what an object store answers; `store` says which one (never with a key in it)."""

    def __init__(self, store: str, message: str) -> None:
        super().__init__(f"{store}: {message}")
        self.store = store


class ObjectNotFoundError(ObjectStoreError):
    """No object has this key (or, on Supabase, the key in use may not see it)."""

    def __init__(self, store: str, key: str) -> None:
        super().__init__(store, f"no object {key!r}")
        self.key = key


class ObjectExistsError(ObjectStoreError):
    """`create` found an object under this key; it was left as it is."""

    def __init__(self, store: str, key: str) -> None:
        super().__init__(store, f"object {key!r} exists already")
        self.key = key


class ObjectTooLargeError(ObjectStoreError):
    """An object is larger than a limit: the reader's own, or the bucket's."""

    def __init__(self, store: str, key: str, limit_bytes: int | None) -> None:
        limit = "the bucket's file size limit (raise it in the bucket's settings)"
        super().__init__(store, f"object {key!r} is larger than {limit if limit_bytes is None else limit_bytes} bytes")
        self.key = key
        self.limit_bytes = limit_bytes


class CorruptObjectError(ObjectStoreError):
    """What is stored differs from what was recorded or sent."""

    retryable = True

    def __init__(self, store: str, key: str, expected: str, actual: str) -> None:
        super().__init__(store, f"object {key!r} is damaged: expected {expected}, found {actual}")
        self.key = key
        self.expected = expected
        self.actual = actual


class BucketNotFoundError(ObjectStoreError):
    """The bucket does not exist (or, on Supabase, the key in use may not see it)."""

    retryable = True

    def __init__(self, store: str, bucket: str) -> None:
        super().__init__(
            store, f"no bucket {bucket!r}: create it in Supabase, or check that the key belongs to this project"
        )
        self.bucket = bucket


class AccessDeniedError(ObjectStoreError):
    """The key in use is not accepted, or may not do this."""

    retryable = True

    def __init__(self, store: str, operation: str, answer: str) -> None:
        super().__init__(
            store, f"{operation} was refused ({answer}): check SUPABASE_SERVICE_ROLE_KEY, it must be this project's"
        )
        self.operation = operation
        self.answer = answer


class StoreUnavailableError(ObjectStoreError):
    """The store did not answer, or answered that it cannot serve now; nothing is known about the outcome.

    Attributes:
        retry_after: How long the store wants to be left alone; None where it did not say.
    """

    retryable = True

    def __init__(self, store: str, operation: str, reason: str, *, retry_after: timedelta | None = None) -> None:
        super().__init__(store, f"{operation} did not succeed: {reason}. It may be tried again")
        self.operation = operation
        self.reason = reason
        self.retry_after = retry_after


class UnexpectedAnswerError(ObjectStoreError):
    """The store refused a request for a cause that none of the other errors names."""

    def __init__(self, store: str, operation: str, answer: str) -> None:
        super().__init__(store, f"{operation} was answered unexpectedly: {answer}")
        self.operation = operation
        self.answer = answer


class LocalFileError(BridgeError):
    """A local file or directory could not be read or written (permissions, a full disk)."""

    retryable = True

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


# --- releases ---------------------------------------------------------------------------------------------------------


class ReleaseNotFoundError(BridgeError):
    """No complete release has this run_id."""

    def __init__(self, model_key: str, run_id: str) -> None:
        super().__init__(
            f"{model_key} has no complete release {run_id}. "
            f"`supabase-bridge status {model_key}` lists what there is, `supabase-bridge mirror` makes one"
        )
        self.model_key = model_key
        self.run_id = run_id


class ChannelNotFoundError(BridgeError):
    """Nothing was ever promoted to a channel of a model."""

    def __init__(self, model_key: str, channel: str) -> None:
        super().__init__(
            f"{model_key} has no channel {channel!r}: {model_key}/{channel}/manifest.json is missing. "
            f"`supabase-bridge status {model_key}` lists its channels, a promotion in MLflow makes one"
        )
        self.model_key = model_key
        self.channel = channel


class ReleaseWithoutVersionError(BridgeError):
    """A release was not made from an MLflow version, so no promotion in MLflow can make it current."""

    def __init__(self, model_key: str, run_id: str) -> None:
        super().__init__(
            f"{model_key} {run_id} names no MLflow version; move the pointer alone: "
            f"supabase-bridge activate {model_key} {run_id}"
        )
        self.model_key = model_key
        self.run_id = run_id


class NothingToRollBackToError(BridgeError):
    """A channel has no earlier release to go back to."""

    def __init__(self, model_key: str, channel: str) -> None:
        super().__init__(f"{model_key}/{channel} has no earlier release to roll back to")
        self.model_key = model_key
        self.channel = channel


class ReleaseConflictError(BridgeError):
    """Other content lies under a release's key; a release never changes."""

    def __init__(self, key: str, expected: str, actual: str) -> None:
        super().__init__(
            f"{key} exists with other content (SHA-256 {actual[:12]}…, this version has {expected[:12]}…); it was left "
            "as it is. Give the version a run_id of its own (run tag supabase.run_id), or delete the directory if stray"
        )
        self.key = key
        self.expected = expected
        self.actual = actual


class WorkerDiedError(BridgeError):
    """The worker beside a watch ended by an error that nobody expected, so that nothing is carried out any more."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the worker ended unexpectedly, so the watch ends too: {reason[:500]}. What was seen is kept: start it "
            "again, and where it ends again, look at the newest events (`supabase-bridge -v watch-registry ...`)"
        )
        self.reason = reason


class ReleaseTakenError(BridgeError):
    """The run_id in a version's tag is that of another version's release."""

    def __init__(self, key: str, owner: str, owner_version: int, model: str, version: int) -> None:
        super().__init__(
            f"{key} is the release of {owner} version {owner_version}, not of {model} version {version}; it was left "
            "as it is. Delete the version's tag supabase.run_id and try again (`supabase-bridge outbox retry`): the "
            "version gets a run_id of its own"
        )
        self.key = key
        self.owner = owner
        self.owner_version = owner_version
        self.model = model
        self.version = version


class ReleaseDamagedError(BridgeError):
    """A file of a complete release, or of its log, is missing or differs from its record."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"release file {key}: {problem}. The pointer was not moved; mirror the version again")
        self.key = key
        self.problem = problem


class ModelKeyTakenError(BridgeError):
    """Two registered models want the same folder."""

    def __init__(self, model_key: str, owner: str, model: str) -> None:
        super().__init__(
            f"folder {model_key!r} belongs to registered model {owner!r} (its tag supabase.key); "
            f"set the tag supabase.key of {model!r} to another name"
        )
        self.model_key = model_key
        self.owner = owner
        self.model = model


class ModelFileMissingError(BridgeError):
    """A model version has no file of a kind a release needs."""

    def __init__(self, model: str, version: int, searched: str) -> None:
        super().__init__(
            f"{model} version {version} has no ONNX file in {searched}: "
            "log the model with mlflow.onnx.log_model(...), or log a *.onnx artifact"
        )
        self.model = model
        self.version = version
        self.searched = searched


class ModelFileAmbiguousError(BridgeError):
    """A model version has several files of one kind and no rule chooses between them."""

    def __init__(self, model: str, version: int, candidates: tuple[str, ...]) -> None:
        super().__init__(
            f"{model} version {version} has {len(candidates)} candidates and no rule to choose: "
            f"{', '.join(candidates)}. Keep one of them, or name it <model>_latest"
        )
        self.model = model
        self.version = version
        self.candidates = candidates


class InvalidModelFileError(BridgeError):
    """An ONNX file is corrupt or breaks the ONNX specification."""

    rejects = True

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} is not a valid ONNX model: {reason}")
        self.name = name
        self.reason = reason


# --- trust ------------------------------------------------------------------------------------------------------------


class ManifestRefusedError(BridgeError):
    """The root of why a manifest is not believed; `key` is its place in the bucket."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(f"{key} is refused: {problem}")
        self.key = key
        self.problem = problem


class ManifestUnsignedError(ManifestRefusedError):
    """A manifest has no signature, and one is required."""

    def __init__(self, key: str) -> None:
        super().__init__(
            key,
            "it is not signed. Sign what is there with `supabase-bridge keys sign-manifest`, or set "
            "require_signature = false until all of it is signed",
        )


class MalformedSignatureError(ManifestRefusedError):
    """A signature is not the detached JWS that the format describes."""


class SignatureAlgorithmError(ManifestRefusedError):
    """A signature names another algorithm than ES256."""

    def __init__(self, key: str, algorithm: object) -> None:
        super().__init__(key, f"its signature names the algorithm {str(algorithm)[:40]!r}; only ES256 is accepted")
        self.algorithm = algorithm


class UnknownKeyError(ManifestRefusedError):
    """A signature was made with a key that is not trusted."""

    def __init__(self, key: str, key_id: str) -> None:
        super().__init__(
            key,
            f"key {key_id[:60]!r} is not trusted. If it is yours, add its public key to trusted_keys in the settings",
        )
        self.key_id = key_id


class WrongSignatureError(ManifestRefusedError):
    """A signature is not of this content: the manifest was changed after it was signed."""

    def __init__(self, key: str, key_id: str) -> None:
        super().__init__(key, f"the signature of key {key_id!r} is not of this content: it was changed after signing")
        self.key_id = key_id


class WrongManifestError(ManifestRefusedError):
    """A manifest is another model's or channel's than the one asked for."""

    def __init__(self, key: str, model_name: str, channel: str) -> None:
        super().__init__(key, f"it is the manifest of model {model_name[:120]!r}, channel {channel[:80]!r}")
        self.model_name = model_name
        self.channel = channel


class ManifestReplayedError(ManifestRefusedError):
    """A manifest is older than one that was seen before."""

    def __init__(self, key: str, sequence: int, seen: int) -> None:
        super().__init__(
            key, f"its sequence is {sequence}, and {seen} was seen before: somebody, or a cache, serves an old one"
        )
        self.sequence = sequence
        self.seen = seen


class ManifestForkedError(ManifestRefusedError):
    """Two manifests have one sequence and different contents."""

    def __init__(self, key: str, sequence: int) -> None:
        super().__init__(key, f"sequence {sequence} was seen before with other content: one of the two is forged")
        self.sequence = sequence


class ManifestExpiredError(ManifestRefusedError):
    """A manifest was published longer ago than the policy allows."""

    def __init__(self, key: str, published_at: datetime, max_age: timedelta) -> None:
        super().__init__(
            key,
            f"it was published at {published_at.isoformat()}, longer ago than max_age ({max_age}). Promote a version, "
            "or confirm the current one with `supabase-bridge keys sign-manifest`",
        )
        self.published_at = published_at
        self.max_age = max_age


class ManifestFromTheFutureError(ManifestRefusedError):
    """A manifest's time lies ahead of this machine's clock, so that its age says nothing."""

    def __init__(self, key: str, published_at: datetime, now: datetime) -> None:
        super().__init__(
            key, f"it was published at {published_at.isoformat()}, and this machine's clock says {now.isoformat()}"
        )
        self.published_at = published_at
        self.now = now


class ManifestPathError(ManifestRefusedError):
    """A manifest names an object that is not where the layout puts it."""

    def __init__(self, key: str, field: str, path: str) -> None:
        super().__init__(key, f"{field} is {path[:200]!r}, which is not where that release has it")
        self.field = field
        self.path = path


class FilesUnrecordedError(ManifestRefusedError):
    """A signed manifest has no digest of a file, so that its signature says nothing of the file's content."""

    def __init__(self, key: str, name: str) -> None:
        super().__init__(key, f"current.files has no record of {name}, so the signature does not cover that file")
        self.name = name


class UntrustedLogError(BridgeError):
    """The newest entry of a release log is not signed by a trusted key, so nothing is built upon it."""

    def __init__(self, key: str, problem: str) -> None:
        super().__init__(
            f"{key} is the newest entry of its log, but nobody who is trusted wrote it: {problem}. Nothing was "
            "switched. Find out who can write to the bucket; then trust that entry's key, or delete the object, and "
            "try again (`supabase-bridge outbox retry`)"
        )
        self.key = key
        self.problem = problem


class SigningKeyMissingError(BridgeError):
    """A log is signed, or has to be, and this writer has no key to sign with."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"{key} must be signed, and this process has no signing key: set SUPABASE_BRIDGE_SIGNING_KEY_FILE. "
            "Nothing was switched"
        )
        self.key = key


class ReleaseSignatureError(BridgeError):
    """A release has no model signature of a trusted key that fits its files."""

    def __init__(self, key: str, problem: str, model_key: str, run_id: str) -> None:
        super().__init__(
            f"{key}: {problem}. No pointer was moved. Where the release is what it should be, sign it: "
            f"supabase-bridge keys sign-release {model_key} {run_id}"
        )
        self.key = key
        self.problem = problem


class SigningExtraMissingError(BridgeError):
    """Signing is on, but the library that signs models is not installed."""

    def __init__(self) -> None:
        super().__init__(
            "keys are configured, and model signatures need the library model-signing: "
            "pip install 'mlflow-supabase-bridge[signing]'"
        )


class ModelCheckError(BridgeError):
    """A model's files are well-formed, but do not do what a release must."""

    rejects = True

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} did not pass the checks: {problem}")
        self.name = name
        self.problem = problem


class UnsafePickleError(BridgeError):
    """Loading a PyTorch file could run code, or nobody can tell whether it would."""

    rejects = True

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name} is not a safe PyTorch file: {problem}")
        self.name = name
        self.problem = problem


class CheckInterruptedError(BridgeError):
    """The process that checks a model's files was stopped from outside; nothing is known about the files."""

    retryable = True

    def __init__(self, name: str) -> None:
        super().__init__(f"the check of {name} was stopped before its end")
        self.name = name


# --- the registry -----------------------------------------------------------------------------------------------------


class RegistryUnavailableError(BridgeError):
    """MLflow's database or server did not answer."""

    retryable = True

    def __init__(self, operation: str, reason: str) -> None:
        super().__init__(f"MLflow could not {operation}: {reason}")
        self.operation = operation
        self.reason = reason


class OutboxContendedError(RegistryUnavailableError):
    """Several workers or servers wrote to the outbox at one moment, and the database let the others go first."""


class RegistryRefusedError(BridgeError):
    """MLflow answered that it will not do this, and will not later either."""

    def __init__(self, operation: str, reason: str) -> None:
        super().__init__(f"MLflow refused to {operation}: {reason}")
        self.operation = operation
        self.reason = reason


class NotAnMlflowDatabaseError(BridgeError):
    """A database is reachable, but MLflow has not set it up."""

    def __init__(self, database: str) -> None:
        super().__init__(
            f"{database} is not an MLflow database (it has no table registered_models). "
            "Start `supabase-bridge server` once, or point SUPABASE_BRIDGE_DATABASE_URL at MLflow's --backend-store-uri"
        )
        self.database = database


class OutboxNewerError(BridgeError):
    """A later release of the bridge has migrated the outbox's tables."""

    def __init__(self, found: str, known: str) -> None:
        super().__init__(
            f"the outbox's tables are at revision {found}, and this release of the bridge knows them up to {known}; "
            "install the release that migrated them, or a later one, wherever this database is used"
        )
        self.found = found
        self.known = known


class PluginMissingError(BridgeError):
    """MLflow does not know our registry store, so no change would be captured."""

    def __init__(self, scheme: str) -> None:
        super().__init__(
            f"MLflow has no registry store for {scheme}:// in this environment, so no promotion would be captured: "
            "install the bridge there with `pip install 'mlflow-supabase-bridge[mlflow]'`"
        )
        self.scheme = scheme


class ModelNotFoundError(BridgeError):
    """MLflow has no registered model of this name."""

    def __init__(self, model: str) -> None:
        super().__init__(f"MLflow has no registered model {model!r}")
        self.model = model


class VersionNotFoundError(BridgeError):
    """A registered model has no such version."""

    def __init__(self, model: str, version: int) -> None:
        super().__init__(f"registered model {model!r} has no version {version}")
        self.model = model
        self.version = version


class SourceNotAllowedError(BridgeError):
    """A model version's files lie where the settings do not allow the bridge to read."""

    def __init__(self, source: str, allowed: tuple[str, ...]) -> None:
        super().__init__(
            f"source {source[:200]!r} is not read: it is outside the allowed roots ({', '.join(allowed)}). "
            "Add its root to allowed_sources in the settings if it is yours"
        )
        self.source = source
        self.allowed = allowed


class SourceUnusableError(BridgeError):
    """A model version's files lie where they may, but what is there cannot be a model's files."""

    def __init__(self, source: str, problem: str) -> None:
        super().__init__(f"source {source[:200]!r} is not read: {problem}")
        self.source = source
        self.problem = problem


class WorkspaceNotMappedError(BridgeError):
    """A workspace other than the default one has no bucket of its own."""

    def __init__(self, workspace: str) -> None:
        super().__init__(
            f"workspace {workspace!r} has no bucket of its own, so its models are not mirrored: "
            f'add it to [workspaces] in the settings ({workspace} = "a-bucket")'
        )
        self.workspace = workspace


# --- the outbox -------------------------------------------------------------------------------------------------------


class EventNotFoundError(BridgeError):
    """The outbox has no such event, or it is not in a state that allows the command."""

    def __init__(self, event_id: int, wanted: str) -> None:
        super().__init__(f"the outbox has no event {event_id} that is {wanted}; see `supabase-bridge outbox list`")
        self.event_id = event_id
        self.wanted = wanted


class LeaseLostError(BridgeError):
    """An event is no longer its worker's: held for too long without a sign of life, or its model was renamed."""

    def __init__(self, event_id: int) -> None:
        super().__init__(
            f"event {event_id} was taken over by another worker, or its model was renamed; "
            "what becomes of it is for whoever takes it up next"
        )
        self.event_id = event_id


class EventUnfinishedError(BridgeError):
    """A change is recorded, but did not get through: it failed for good, or is still being retried."""

    def __init__(self, event_id: int, state: str, outcome: str | None) -> None:
        super().__init__(
            f"the change is recorded as event {event_id} and is {state}: {outcome or 'nobody has taken it up yet'}. "
            "See `supabase-bridge outbox list`"
        )
        self.event_id = event_id
        self.state = state
        self.outcome = outcome


class ServerStartError(BridgeError):
    """The MLflow server could not be started."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"no MLflow server at {url}: {reason}")
        self.url = url
        self.reason = reason


class DemoFailedError(BridgeError):
    """A step of the demonstration did not lead where it should."""

    def __init__(self, step: str, found: str) -> None:
        super().__init__(f"the demonstration stopped: {step}: {found}")
        self.step = step
        self.found = found


# --- the consumer -----------------------------------------------------------------------------------------------------


class InvalidReferenceError(BridgeError):
    """A text does not say which release is meant."""

    def __init__(self, text: str, problem: str) -> None:
        super().__init__(
            f"{text[:200]!r} names no release: {problem}. Expected MODEL, MODEL@CHANNEL or MODEL/RUN_ID "
            "(two_tower, two_tower@staging, two_tower/20251031T093831Z)"
        )
        self.text = text
        self.problem = problem


class DeadlineExceededError(ObjectStoreError):
    """A read did not end in the time it was given, however busy the server looked."""

    retryable = True

    def __init__(self, store: str, operation: str, seconds: float) -> None:
        super().__init__(store, f"{operation} did not end within {seconds:.3g} seconds and was given up")
        self.operation = operation
        self.seconds = seconds


class RedirectRefusedError(ObjectStoreError):
    """A read was answered with a redirect; none is followed, so that no key is sent to where it leads."""

    def __init__(self, store: str, operation: str, host: str) -> None:
        super().__init__(
            store, f"{operation} was redirected to {host[:200]!r}, which is not followed: check the project's URL"
        )
        self.operation = operation
        self.host = host


class ReadDeniedError(ObjectStoreError):
    """The project does not let this consumer read."""

    retryable = True

    def __init__(self, store: str, operation: str, answer: str) -> None:
        super().__init__(
            store,
            f"{operation} was refused ({answer}): check the key in use (SUPABASE_ANON_KEY) and the bucket's policy, or "
            "get a fresh signed URL; docs/consumers.md has the policy",
        )
        self.operation = operation
        self.answer = answer


class ReleaseUnsignedError(BridgeError):
    """No signed entry of a channel's log names a release, no model.sig covers it, and a signature is required."""

    def __init__(self, model_key: str, run_id: str, channel: str, problem: str) -> None:
        super().__init__(
            f"{model_key} {run_id} is refused: no signed entry of {model_key}/{channel}/history/ names it, and of its "
            f"model.sig: {problem}. Ask for it by a channel that it was promoted to, or set require_signature = false"
        )
        self.model_key = model_key
        self.run_id = run_id
        self.channel = channel
        self.problem = problem


class MemoryDamagedError(BridgeError):
    """What a consumer remembers of a channel cannot be read, so that an older manifest would go unnoticed."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path}: what was seen of the channel before cannot be read ({reason}), so an older manifest could not be "
            "told from a new one. Delete the file to begin afresh"
        )
        self.path = path
        self.reason = reason
