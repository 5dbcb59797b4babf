"""Where the cache is, and how large."""

from __future__ import annotations

from pathlib import Path

import pytest

from supabase_bridge.core.errors import SettingsError
from supabase_bridge.settings.model import FILE_NAME, Settings


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/h"}, "/h/.cache/supabase-bridge"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x"}, "/x/supabase-bridge"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "relative"}, "/h/.cache/supabase-bridge"),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x", "SUPABASE_BRIDGE_CACHE": "/c"}, "/c"),
        ({"HOME": "not absolute"}, None),
    ],
)
def test_the_cache_is_in_the_users_cache_directory_unless_it_is_named(
    tmp_path: Path, environ: dict[str, str], expected: str | None
) -> None:
    found = Settings.load(home=tmp_path, environ=environ).cache_dir
    assert found == (None if expected is None else Path(expected))


def test_the_file_names_the_cache_and_its_limit_and_the_environment_beats_it(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('cache_dir = "/from/file"\ncache_limit_bytes = 5\n')
    settings = Settings.load(home=tmp_path, environ={})
    assert (settings.cache_dir, settings.cache_limit_bytes) == (Path("/from/file"), 5)
    assert Settings.load(home=tmp_path, environ={"SUPABASE_BRIDGE_CACHE": "/c"}).cache_dir == Path("/c")


@pytest.mark.parametrize("line", ["cache_limit_bytes = -1", "cache_limit_bytes = 1.5", "cache_limit_bytes = true"])
def test_a_limit_that_is_no_number_of_bytes_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / FILE_NAME).write_text(line)
    with pytest.raises(SettingsError, match="whole number of bytes"):
        Settings.load(home=tmp_path, environ={})
