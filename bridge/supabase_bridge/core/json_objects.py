"""Parse a JSON object from untrusted bytes, bounded in size and depth; encode one as canonical JSON (RFC 8785)."""

from __future__ import annotations

import codecs
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import rfc8785

from supabase_bridge.core.errors import InvalidDocumentError

LIMIT_BYTES = 1_000_000
"""The size limit of a document; a larger one is refused unread."""
_NESTING_LIMIT = 64


def parse_object(data: bytes, document_name: str) -> dict[str, Any]:
    """Parse a JSON object of at most LIMIT_BYTES.

    Raises:
        InvalidDocumentError: it is no JSON object, too large or deep, or has NaN, infinity, a repeated key or half a
            surrogate pair.
    """
    return _parse(data, document_name, lambda value: value, _refuse_constant)


def parse_training_object(data: bytes, document_name: str) -> tuple[dict[str, Any], list[str]]:
    """Parse a JSON object as a training job writes it: with a byte order mark, and with NaN and infinity.

    Return it without the numbers that are not finite (null in a list), and the paths of these numbers.
    """
    left_out: list[str] = []

    def finite(value: Any, path: str) -> Any:
        if isinstance(value, dict):
            below = {name: finite(item, f"{path}.{name}") for name, item in value.items()}
            return {name: item for name, item in below.items() if item is not None or value[name] is None}
        if isinstance(value, list):
            return [finite(item, f"{path}[{place}]") for place, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            left_out.append(path.removeprefix("."))
            return None
        return value

    return _parse(data.removeprefix(codecs.BOM_UTF8), document_name, lambda value: finite(value, ""), float), left_out


def canonical(value: Mapping[str, Any], document: str) -> bytes:
    """Encode a JSON object as canonical JSON: every implementation of RFC 8785 gives the same bytes.

    Raises:
        InvalidDocumentError: it has an integer of 2^53 or more, or of -2^53 or less, where implementations differ.
    """
    try:
        return rfc8785.dumps(dict(value))
    except rfc8785.CanonicalizationError as error:
        raise InvalidDocumentError(document, f"it has no canonical form: {error}"[:200]) from None


def _parse(
    data: bytes, document_name: str, clean: Callable[[Any], Any], constant: Callable[[str], Any]
) -> dict[str, Any]:
    if len(data) > LIMIT_BYTES:
        raise InvalidDocumentError(document_name, f"larger than {LIMIT_BYTES} bytes")
    try:
        value = json.loads(data.decode(), parse_constant=constant, object_pairs_hook=_unique_keys)
        _refuse_deep_nesting(value)
        value = clean(value)
        # Python reads 1e999 as infinity and "\\ud800" as it stands, and could write neither.
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise InvalidDocumentError(document_name, str(error)[:200] or "no JSON") from None
    if not isinstance(value, dict):
        raise InvalidDocumentError(document_name, "expected a JSON object")
    return value


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key is there twice")
    return value


def _refuse_deep_nesting(value: object) -> None:
    level = [value]
    for _ in range(_NESTING_LIMIT):
        inner = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for items in inner for item in items]
        if not level:
            return
    raise ValueError(f"nested more than {_NESTING_LIMIT} deep")
