"""Errors of the registry: missing model or version, refused call, folder or bucket not available."""

from __future__ import annotations

from supabase_bridge.core.errors import BridgeError


class NoReleasePlaceError(BridgeError):
    """A registered model has no folder for its releases, or its workspace no bucket."""

    template = "{problem}"
    problem: str

    @classmethod
    def folder_taken(cls, model_key: str, owner: str, model: str) -> NoReleasePlaceError:
        """Another registered model owns the folder that this model claims."""
        return cls(
            f"folder {model_key!r} belongs to registered model {owner!r} (its tag supabase.key); "
            f"set the tag supabase.key of {model!r} to another name"
        )

    @classmethod
    def no_bucket(cls, workspace: str) -> NoReleasePlaceError:
        """A workspace other than the default one has no bucket in the settings."""
        return cls(
            f"workspace {workspace!r} has no bucket of its own, so its models are not mirrored: "
            f'add it to [workspaces] in the settings ({workspace} = "a-bucket")'
        )


class RegistryRefusedError(BridgeError):
    """MLflow refused a call, and will refuse it again."""

    template = "MLflow refused to {operation}: {reason}"
    operation: str
    reason: str


class ModelNotFoundError(BridgeError):
    """MLflow has no registered model of this name."""

    template = "MLflow has no registered model {model!r}"
    model: str


class VersionNotFoundError(BridgeError):
    """A registered model has no such version."""

    template = "registered model {model!r} has no version {version}"
    model: str
    version: int
