"""A consumer that looks at every manifest all the time, and at every file of what it names."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType

from supabase_bridge.core.documents import Manifest, ModelMeta
from supabase_bridge.core.layout import ChannelPaths, ReleasePaths, RunId
from tests.crash.soak_parts import BUCKET
from tests.support.simulators.storage import StorageSimulator

_LOOK_SECONDS = 0.01


class Reader:
    """See the module; it looks in its own thread.

    Attributes:
        read: How often it looked.
        checked: How many different manifests it held to the files that they name.
        steps_back: How often a manifest was older than the one before: an overtaken writer, until it looks again.
    """

    def __init__(self, simulator: StorageSimulator, models: Sequence[str]) -> None:
        self._simulator = simulator
        self._models = models
        self._wrong: list[str] = []
        self._seen: dict[str, bytes] = {}
        self._sequences: dict[str, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.read = self.checked = self.steps_back = 0

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def check(self) -> None:
        """Nothing that was read was wrong."""
        assert self._wrong == []
        assert self.checked > 0

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            for model in self._models:
                with suppress(KeyError):
                    self._look(model, self._simulator.object_bytes(BUCKET, _manifest_key(model)))

    def _look(self, model: str, data: bytes) -> None:
        self.read += 1
        if self._seen.get(model) == data:
            return
        self._seen[model] = data
        self.checked += 1
        try:
            manifest = Manifest.parse(data)
            self.steps_back += manifest.sequence < self._sequences.get(model, 0)
            self._sequences[model] = manifest.sequence
            self._check_files(manifest)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with it
            self._wrong.append(f"{model}: {error!r}")

    def _check_files(self, manifest: Manifest) -> None:
        current = manifest.current
        paths = ReleasePaths(model_key=manifest.model_name, run_id=RunId.parse(current.run_id))
        ModelMeta.parse(self._simulator.object_bytes(BUCKET, current.meta_path))
        assert {paths.file(name) for name in current.files} >= {
            current.onnx_path,
            current.meta_path,
            current.metrics_path,
        }
        for name, record in current.files.items():
            data = self._simulator.object_bytes(BUCKET, paths.file(name))
            assert (len(data), hashlib.sha256(data).hexdigest()) == (record.size_bytes, record.sha256), name


def _manifest_key(model: str) -> str:
    return ChannelPaths(model_key=model, channel="latest").manifest
