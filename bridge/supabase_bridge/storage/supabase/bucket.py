"""The settings of a bucket: its limits, and whether it keeps old versions of its objects."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from supabase_bridge.storage.errors import UnexpectedResponseError
from supabase_bridge.storage.supabase.client import Transport

_ENABLED, _SUSPENDED = "ENABLED", "SUSPENDED"


class _Expiration(BaseModel):
    noncurrentDays: int | None = None
    newerNoncurrentVersions: int | None = None


class LifecycleRule(BaseModel):
    """A rule that removes old versions of objects."""

    status: str
    noncurrentVersionExpiration: _Expiration | None = None

    @property
    def description(self) -> str | None:
        """What the rule does, in words; None where it removes nothing."""
        expiration = self.noncurrentVersionExpiration
        if self.status != "Enabled" or expiration is None or expiration.noncurrentDays is None:
            return None
        kept = expiration.newerNoncurrentVersions
        besides = "" if kept is None else f", but for the newest {kept} of each object"
        return f"after {expiration.noncurrentDays} days{besides}"


class _Lifecycle(BaseModel):
    rules: list[LifecycleRule]


class BucketSettings(BaseModel):
    """The settings of a bucket, as the server shows them.

    Attributes:
        versioning_status: DISABLED, ENABLED or SUSPENDED; None where the server has no versioning.
        rules: The lifecycle rules, where versions are kept.
    """

    public: bool = False
    file_size_limit: int | None = None
    allowed_mime_types: list[str] | None = None
    versioning_status: str | None = None
    rules: Sequence[LifecycleRule] = ()

    @property
    def kept_versions(self) -> str | None:
        """What versioning means for the bucket's cost, in words; None where no old version is kept."""
        if self.versioning_status not in {_ENABLED, _SUSPENDED}:
            return None
        if self.versioning_status == _SUSPENDED:
            what = "versioning is suspended: versions from before are kept"
        else:
            what = "versioning is on: each replaced manifest and each deleted object is kept as an old version"
        ends = [rule.description for rule in self.rules if rule.description is not None]
        return f"{what} and paid for, {f'until a rule removes it {ends[0]}' if ends else 'and no rule removes it'}"


def read_bucket(transport: Transport) -> BucketSettings:
    """Read the settings of the transport's bucket, which only a secret key sees.

    Raises:
        BucketNotFoundError: there is none.
        ObjectStoreError: see `Transport.run`.
    """
    get, bucket = transport.http().get, transport.bucket
    found = transport.run(
        transport.request("looking for the bucket"),
        lambda: BucketSettings.model_validate_json(get(transport.url("bucket", bucket)).content),
    )
    if found.kept_versions is None:
        return found
    try:
        lifecycle = transport.run(
            transport.request("reading the lifecycle rules"),
            lambda: _Lifecycle.model_validate_json(get(transport.url("bucket", bucket, "lifecycle")).content),
        )
    except UnexpectedResponseError:
        # The bucket has no rules (NoSuchLifecycleConfiguration), or the project has no lifecycle (FeatureNotEnabled).
        return found
    return found.model_copy(update={"rules": tuple(lifecycle.rules)})
