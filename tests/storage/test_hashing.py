"""A file that is hashed while it is written: its record describes its content."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supabase_bridge.core.documents import FileRecord
from supabase_bridge.storage.hashing import HashingWriter

STEP = 1024 * 1024


@pytest.mark.parametrize("size", [0, 1, STEP - 1, STEP, STEP + 1, 5 * STEP + 17])
@pytest.mark.parametrize("piece_bytes", [65_536, 700_001, 3 * STEP])
def test_the_record_is_that_of_the_bytes_whatever_their_pieces(tmp_path: Path, size: int, piece_bytes: int) -> None:
    data, path = os.urandom(size), tmp_path / "file"
    path.write_bytes(b"what was there before" * 400_000)
    with HashingWriter(path) as output:
        for start in range(0, size, piece_bytes):
            output.write(data[start : start + piece_bytes])
        assert output.record() == FileRecord.of(data)
        assert output.size_bytes == size
    assert path.read_bytes() == data


def test_what_somebody_else_wrote_into_the_file_is_in_its_record(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with HashingWriter(path) as output:
        output.write(bytes(1_000))
        with path.open("r+b") as other:
            other.write(b"not what was written")
        assert output.record() == FileRecord.of(path.read_bytes())


def test_a_file_that_somebody_shortens_is_an_error_not_a_wait(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with HashingWriter(path) as output:
        output.write(bytes(3 * STEP))
        output.write(bytes(1_000))
        os.truncate(path, 100)
        with pytest.raises(OSError, match="shorter"):
            output.record()
