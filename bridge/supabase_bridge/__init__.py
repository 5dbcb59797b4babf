"""Model releases in Supabase Storage, kept in step with an MLflow registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supabase_bridge.consumer.resolver import Resolver

__all__ = ["Resolver"]


def __getattr__(name: str) -> object:
    """`Resolver`, imported when it is asked for: the other parts of the package do without it."""
    if name == "Resolver":
        from supabase_bridge.consumer.resolver import Resolver

        return Resolver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
