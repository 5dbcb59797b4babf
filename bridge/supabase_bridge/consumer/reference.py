"""Which release somebody means: `two_tower`, `two_tower@staging`, `two_tower/20251031T093831Z`. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from supabase_bridge.errors import InvalidReferenceError
from supabase_bridge.layout import ChannelKeys, ReleaseKeys, RunId, check_channel, check_model_key

DEFAULT_CHANNEL = "latest"
_CHANNEL_MARK = "@"
_RUN_MARK = "/"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A release as somebody asks for it.

    Attributes:
        channel: The channel that names the release; for a release that is named itself, the one whose log vouches for
            it where signatures are required.
        run_id: The release; None: the one that is current in the channel.
    """

    channel: ChannelKeys
    run_id: RunId | None

    @classmethod
    def parse(cls, text: str, *, channel: str | None = None, run_id: str | None = None) -> Reference:
        """Read MODEL, MODEL@CHANNEL or MODEL/RUN_ID; a channel or run_id may be given beside a bare MODEL too.

        Raises:
            InvalidReferenceError: the text has another form, or says what is given beside it as well.
            InvalidModelKeyError, InvalidChannelError, InvalidRunIdError: a part of it cannot be what it should be.
        """
        mark = next((character for character in text if character in _CHANNEL_MARK + _RUN_MARK), None)
        model, _, rest = text.partition(mark) if mark else (text, "", "")
        if (mark == _CHANNEL_MARK and channel is not None) or (mark == _RUN_MARK and run_id is not None):
            raise InvalidReferenceError(text, "it says twice which release is meant")
        if mark is not None and not rest:
            raise InvalidReferenceError(text, f"nothing follows the {mark!r}")
        wanted_channel = rest if mark == _CHANNEL_MARK else channel
        wanted_run = rest if mark == _RUN_MARK else run_id
        return cls(
            channel=ChannelKeys(
                model_key=check_model_key(model), channel=check_channel(wanted_channel or DEFAULT_CHANNEL)
            ),
            run_id=None if wanted_run is None else RunId.parse(wanted_run),
        )

    @property
    def release(self) -> ReleaseKeys | None:
        """The keys of the release, where it is named itself."""
        return None if self.run_id is None else ReleaseKeys(model_key=self.channel.model_key, run_id=self.run_id)

    def __str__(self) -> str:
        if self.run_id is not None:
            return f"{self.channel.model_key}{_RUN_MARK}{self.run_id}"
        return f"{self.channel.model_key}{_CHANNEL_MARK}{self.channel.channel}"
