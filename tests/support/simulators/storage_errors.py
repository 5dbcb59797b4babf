"""The errors of Supabase Storage, with the exact texts of the recorded server."""

from __future__ import annotations


class StorageError(Exception):
    """A refusal. Nearly all are sent as HTTP 400, with the real status in the body's `statusCode`."""

    def __init__(self, code: str, status: int, message: str, *, error: str = "", http_status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status
        self.message = message
        self.error = error or code
        self.http_status = http_status

    def as_json(self) -> dict[str, str]:
        """The body of the answer."""
        return {"statusCode": str(self.status), "error": self.error, "message": self.message, "code": self.code}


def no_such_bucket() -> StorageError:
    return StorageError("NoSuchBucket", 404, "Bucket not found", error="Bucket not found")


def no_lifecycle() -> StorageError:
    """The answer for a bucket without lifecycle rules."""
    return StorageError("NoSuchLifecycleConfiguration", 404, "The lifecycle configuration does not exist")


def bucket_exists() -> StorageError:
    return StorageError("BucketAlreadyExists", 409, "The resource already exists", error="Duplicate")


def bucket_not_empty() -> StorageError:
    return StorageError("ResourceNotEmpty", 409, "The bucket you tried to delete is not empty")


def no_such_key() -> StorageError:
    return StorageError("NoSuchKey", 404, "Object not found", error="not_found")


def key_exists() -> StorageError:
    """The refusal of upload and copy for a key that exists."""
    return StorageError("KeyAlreadyExists", 409, "The resource already exists", error="Duplicate")


def resource_exists() -> StorageError:
    """The refusal of move for a key that exists."""
    return StorageError("ResourceAlreadyExists", 409, "The resource already exists", error="Duplicate")


def no_related_resource() -> StorageError:
    """The refusal of copy and move for a missing destination bucket."""
    return StorageError("InvalidRequest", 404, "The related resource does not exist")


def invalid_key(key: str, why: str = "") -> StorageError:
    return StorageError("InvalidKey", 400, f"Invalid key: {key}{why}")


def too_large() -> StorageError:
    return StorageError(
        "EntityTooLarge", 413, "The object exceeded the maximum allowed size", error="Payload too large"
    )


def mime_type_refused(mimetype: str) -> StorageError:
    return StorageError("InvalidMimeType", 415, f"mime type {mimetype} is not supported", error="invalid_mime_type")


def invalid_range() -> StorageError:
    """The one error with its real HTTP status."""
    return StorageError("InvalidRange", 416, "invalid range provided", error="invalid_range", http_status=416)


def malformed(message: str) -> StorageError:
    """Refuse a request that does not match the schema of the route."""
    return StorageError("InvalidRequest", 400, message, error="Error")


def access_denied(message: str) -> StorageError:
    return StorageError("AccessDenied", 403, message, error="Unauthorized")


def garbage_token() -> StorageError:
    return access_denied("Invalid Compact JWS")


def row_level_security() -> StorageError:
    return access_denied("new row violates row-level security policy")


def invalid_jwt(message: str) -> StorageError:
    """Refuse a signed URL's token that is invalid or expired."""
    return StorageError("InvalidJWT", 400, message)


def invalid_signature(message: str = "Invalid signature") -> StorageError:
    """Refuse a signed URL's token of another object or purpose."""
    return StorageError("InvalidSignature", 400, message)


def invalid_parameter(message: str) -> StorageError:
    return StorageError("InvalidParameter", 400, message)


def no_such_route(method: str, path: str) -> StorageError:
    return StorageError("NotFound", 404, f"Route {method}:{path} not found", error="Not Found", http_status=404)
