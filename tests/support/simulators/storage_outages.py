"""Outages of a project that end when a person acts outside: no quota, no room, an overloaded database, a pause."""

from __future__ import annotations

from enum import Enum

from tests.support.simulators.http_request import Request
from tests.support.simulators.http_response import Response, json_response
from tests.support.simulators.storage_errors import StorageError


class Outage(Enum):
    """An outage, with the status of its responses."""

    NONE = 200
    OVER_QUOTA = 402
    FULL_DISK = 500
    PAUSED = 540
    DATABASE_TIMEOUT = 544

    def refusal(self, request: Request) -> Response | None:
        """Return the response to a request during this outage; None where it is handled as usual."""
        if self is Outage.NONE or (self is Outage.FULL_DISK and not _stores_bytes(request)):
            return None
        return json_response(_BODIES[self], status=self.value)


_BODIES = {
    Outage.OVER_QUOTA: {
        "message": "Service for this project is restricted due to the following violations: exceed_storage_size_quota."
    },
    Outage.FULL_DISK: {"code": "InternalError", "message": "ENOSPC: no space left on device, write"},
    Outage.PAUSED: {"message": "Project paused"},
    Outage.DATABASE_TIMEOUT: StorageError("DatabaseTimeout", 544, "The connection to the database timed out").as_json(),
}


def _stores_bytes(request: Request) -> bool:
    operation = request.raw_path.split("/")[3:5]
    return request.method in {"POST", "PUT", "PATCH"} and (
        operation == ["upload", "resumable"]
        or (operation[:1] == ["object"] and operation[1:] not in (["list"], ["list-v2"], ["move"], ["sign"]))
    )
