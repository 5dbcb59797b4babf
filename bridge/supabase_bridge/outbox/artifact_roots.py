"""The artifact roots of the MLflow server, which its registry plugin records beside the outbox for the worker."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from supabase_bridge.outbox.database import database_errors
from supabase_bridge.outbox.tables import META


@dataclass(frozen=True, kw_only=True)
class ArtifactRoots:
    """Where an MLflow server keeps artifacts: absolute paths, or URIs. Only the server's operator chooses them.

    Attributes:
        artifacts_destination: The place behind `mlflow-artifacts:/`; None: the server serves no artifacts.
        default_artifact_root: The place of new experiments; None: it is behind `mlflow-artifacts:/` too.
    """

    artifacts_destination: str | None = None
    default_artifact_root: str | None = None


NO_ARTIFACT_ROOTS = ArtifactRoots()
"""No server of this database has started with the plugin yet, or its registry is a remote one."""


def record_artifact_roots(engine: Engine, roots: ArtifactRoots) -> None:
    """Record the roots of the server that starts; of several servers, which should agree, the last one counts.

    Each process of a server calls this, so it writes nothing if they are recorded already.
    """
    if load_artifact_roots(engine) != roots:
        with engine.begin() as connection:
            connection.execute(META.update().values(asdict(roots)))


def load_artifact_roots(engine: Engine) -> ArtifactRoots:
    """Return the recorded roots. One query.

    Raises:
        RegistryUnavailableError: the database did not answer.
    """
    with database_errors("read the server's artifact roots"), engine.connect() as connection:
        row = connection.execute(sa.select(META.c.artifacts_destination, META.c.default_artifact_root)).first()
    return NO_ARTIFACT_ROOTS if row is None else ArtifactRoots(**row._mapping)
