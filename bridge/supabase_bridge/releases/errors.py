"""Errors of releases: missing, conflicting, damaged release; untrusted log."""

from __future__ import annotations

from supabase_bridge.core.errors import BridgeError

_HIDDEN = (
    "cannot be read with the key in use: no policy lets this key read the bucket (docs/consumers.md has the policy), "
    "or the object is missing. Check the policy, then the names"
)
"""A server gives a reader the same response for an object that a policy hides as for one that is missing."""


class ReleaseNotFoundError(BridgeError):
    """No complete release has this run_id, or, if `hidden`, the reader's key may not see it."""

    template = "{problem}"
    model_key: str
    run_id: str
    hidden: bool = False

    @property
    def problem(self) -> str:
        """The message's text."""
        if self.hidden:
            return f"{self.model_key}/{self.run_id}/model_meta.json {_HIDDEN}"
        return (
            f"{self.model_key} has no complete release {self.run_id}. Check the model's folder and the run_id: "
            "`supabase-bridge status` lists them where MLflow's database is reachable"
        )


class ReleaseArchivedError(ReleaseNotFoundError):
    """Retention removed the model files of a release; its documents are there."""

    @property
    def problem(self) -> str:
        """The message's text."""
        command = f"supabase-bridge retention restore {self.model_key} {self.run_id}"
        return f"the model files of {self.model_key} {self.run_id} were removed by retention; restore it: `{command}`"


class ReleaseBusyError(BridgeError):
    """Files of a release are being deleted, so that it cannot be restored at this moment."""

    template = (
        "retention is deleting files of {model_key} {run_id} at this moment, or was killed while it did; try again in "
        "a minute"
    )
    retryable = True
    model_key: str
    run_id: str


class ChannelNotFoundError(BridgeError):
    """No release was ever activated in a channel of a model, or, if `hidden`, the reader's key may not see it."""

    template = "{problem}"
    model_key: str
    channel: str
    hidden: bool = False

    @property
    def problem(self) -> str:
        """The message's text."""
        manifest = f"{self.model_key}/{self.channel}/manifest.json"
        if self.hidden:
            return f"{manifest} {_HIDDEN}"
        return (
            f"{self.model_key} has no channel {self.channel!r}: {manifest} is missing. Check the name of the model's "
            "folder and of the channel; a promotion in MLflow makes the channel"
        )


class ReleaseConflictError(BridgeError):
    """Another version's release lies under a release's path, or another registry's entries in a channel's log."""

    template = "{key} {problem}; it was left as it is. {remedy}"
    key: str
    problem: str
    remedy: str

    @classmethod
    def of_content(cls, key: str, expected: str, actual: str) -> ReleaseConflictError:
        """A file of the release exists with another SHA-256 than the version's."""
        problem = f"exists with other content (SHA-256 {actual[:12]}…, this version has {expected[:12]}…)"
        remedy = (
            "Give the version a run_id of its own (run tag supabase.run_id), or delete the directory if it is stray"
        )
        return cls(key, problem, remedy)

    @classmethod
    def of_registry(cls, key: str, owner: str, registry_id: str, reference: str) -> ReleaseConflictError:
        """Another registry wrote the release log of a channel."""
        problem = f"was written by another registry ({owner}, this one is {registry_id})"
        remedy = (
            "Two registries must not share a channel: give one of them a bucket, or the model a supabase.key, of its "
            f"own. If this registry replaces the other one, run `supabase-bridge adopt {reference}`"
        )
        return cls(key, problem, remedy)

    @classmethod
    def of_version(cls, key: str, owner: str, owner_version: int, model: str, version: int) -> ReleaseConflictError:
        """The run_id in a version's tag is that of another version's release."""
        problem = f"is the release of {owner} version {owner_version}, not of {model} version {version}"
        remedy = (
            "Delete the version's tag supabase.run_id and try again (`supabase-bridge outbox retry`): the version gets "
            "a run_id of its own"
        )
        return cls(key, problem, remedy)


class ReleaseTakenError(BridgeError):
    """Another attempt owns the folder of a run_id, or it holds other bytes: this attempt needs another run_id."""

    template = "the folder {prefix} cannot become this release: {problem}"
    prefix: str
    problem: str


class ReleaseDamagedError(BridgeError):
    """A file of a complete release, or of its log, is missing or differs from its record."""

    template = "release file {key}: {problem}. The pointer was not moved; mirror the version again"
    key: str
    problem: str


class ReleaseUnrepairableError(BridgeError):
    """A file of a release is missing or damaged, and cannot be made again with its recorded bytes."""

    template = (
        "the release {run_id} of {model} version {version} cannot be repaired: {problem}. Other bytes were not written "
        "in its place. Make a release with a run_id of its own: `supabase-bridge remake {model} {version}`"
    )
    run_id: str
    model: str
    version: int
    problem: str


class UntrustedLogError(BridgeError):
    """No trusted key signed the newest entry of a release log, so no entry follows it."""

    template = (
        "{key} is the newest entry of its log, but no trusted key signed it: {problem}. No release was activated. "
        "Find out who can write to the bucket; then trust that entry's key, or delete the object, and "
        "try again (`supabase-bridge outbox retry`)"
    )
    key: str
    problem: str
