"""PyTorch files as torch.save writes them, made without PyTorch."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence


def zip_archive(members: Mapping[str, bytes], *, compressed: bool = False) -> bytes:
    """Return a zip archive; the same members give the same bytes."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in members.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
            archive.writestr(entry, content)
    return data.getvalue()


def torch_save(pickled: bytes, storages: Sequence[bytes] = ()) -> bytes:
    """Return the archive that torch.save makes of a pickle and the bytes of its tensors."""
    tensors = {f"archive/data/{number}": storage for number, storage in enumerate(storages)}
    return zip_archive(
        {
            "archive/data.pkl": pickled,
            "archive/byteorder": b"little",
            **tensors,
            "archive/version": b"3\n",
            "archive/.data/serialization_id": b"0" * 40,
        }
    )
