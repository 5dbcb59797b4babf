"""The checks of a version's files before any is uploaded, in a process of their own with a limit on time and memory."""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from supabase_bridge.borrowed_file import borrow, lend
from supabase_bridge.config import Settings
from supabase_bridge.documents import ModelMeta
from supabase_bridge.errors import (
    CheckInterruptedError,
    InvalidModelFileError,
    ModelCheckError,
    UnsafePickleError,
)
from supabase_bridge.model_file import ModelFile

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

_ANSWER_LIMIT_BYTES = 100_000
_MODULES = ["__main__", "supabase_bridge.checks", "supabase_bridge.onnx_trial", "supabase_bridge.pickle_scan"]
"""What each of these processes has imported before it begins; `__main__` is what multiprocessing preloads by itself."""
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


@dataclass(frozen=True, kw_only=True)
class Checks:
    """What a version's files go through.

    Attributes:
        timeout: For all of them together.
        memory_bytes: What they may use besides four times the files' size.
        allowed_globals: See `pickle_scan.scan`.
    """

    timeout: timedelta
    memory_bytes: int
    allowed_globals: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> Checks:
        """The checks as the settings have them."""
        return cls(
            timeout=settings.check_timeout,
            memory_bytes=settings.check_memory_bytes,
            allowed_globals=settings.allowed_pickle_globals,
        )

    def run(self, onnx: ModelFile, state_dict: ModelFile | None, meta: ModelMeta) -> None:
        """Check a version's files; nothing of them is loaded or run in this process.

        Args:
            onnx: It must be here: a trial takes all of it.
            state_dict: Where it is not here, only what the scan looks at is read.
            meta: What the release will say of the model.

        Raises:
            InvalidModelFileError, ModelCheckError: see `onnx_trial.examine`; or it took too much time or memory, or
                crashed the runtime.
            UnsafePickleError: see `pickle_scan.scan`.
            CheckInterruptedError: somebody stopped the process.
            StoreUnavailableError: see `ModelFile.open`.
        """
        size = sum(file.record.size_bytes for file in (onnx, state_dict) if file is not None)
        job = _Job(
            onnx=str(onnx.local),
            state_dict=None if state_dict is None else state_dict.name,
            state_dict_bytes=0 if state_dict is None else state_dict.record.size_bytes,
            allowed_globals=self.allowed_globals,
            user_feature_dim=meta.user_feature_dim,
            item_feature_dim=meta.item_feature_dim,
            embedding_dim=meta.embedding_dim,
            memory_bytes=self.memory_bytes + 4 * size,
        )
        context = _context()
        ours, theirs = context.Pipe()
        process = context.Process(target=_examine, args=(theirs, asdict(job)), daemon=True)  # type: ignore[attr-defined]  # typeshed gives it to each kind of context, not to their base
        with ours, nullcontext() if state_dict is None else state_dict.open() as weights:
            with theirs:
                process.start()
            try:
                self._await(process, ours, weights, onnx.local.name)
            finally:
                process.kill()
                process.join()
                process.close()

    def _await(self, process: BaseProcess, pipe: Connection, weights: BinaryIO | None, name: str) -> None:
        """Answer the process's questions until it says what came of the checks."""
        deadline = time.monotonic() + self.timeout.total_seconds()
        while True:
            if not pipe.poll(max(0.0, deadline - time.monotonic())):
                seconds = f"{self.timeout.total_seconds():g}"
                raise ModelCheckError(name, f"they took longer than {seconds} seconds (check_timeout in the settings)")
            try:
                # JSON, not a pickle: the process that answers has read a stranger's file.
                answer = json.loads(pipe.recv_bytes(_ANSWER_LIMIT_BYTES))
            except (EOFError, ConnectionResetError):
                process.join()
                raise _ended(name, process.exitcode) from None
            if answer is None:
                return
            if "read" not in answer or weights is None:
                raise _ERRORS[answer["error"]](answer["name"], answer["problem"])
            lend(pipe, weights, answer["read"])


@dataclass(frozen=True, kw_only=True)
class _Job:
    """What the process of the checks is told."""

    onnx: str
    state_dict: str | None
    state_dict_bytes: int
    allowed_globals: tuple[str, ...]
    user_feature_dim: int | None
    item_feature_dim: int | None
    embedding_dim: int | None
    memory_bytes: int


_ERRORS: Mapping[str, type[InvalidModelFileError | ModelCheckError | UnsafePickleError]] = {
    kind.__name__: kind for kind in (InvalidModelFileError, ModelCheckError, UnsafePickleError)
}


def _context() -> BaseContext:
    """A server that has imported what the checks need and forks a process for each; a new interpreter elsewhere."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_MODULES)
    return context


def _ended(name: str, exit_code: int | None) -> ModelCheckError | CheckInterruptedError:
    """What it means that the process ended without an answer."""
    if exit_code is not None and -exit_code in _CRASHES:
        return ModelCheckError(name, f"the process that tried it crashed ({signal.Signals(-exit_code).name})")
    if exit_code is not None and 0 < exit_code < 128:
        return ModelCheckError(name, "the process that tried it failed; its own words are in the worker's log")
    return CheckInterruptedError(name)


def _examine(pipe: Connection, values: dict[str, object]) -> None:
    """Run the checks and send what came of them; the process's main function."""
    from supabase_bridge import onnx_trial, pickle_scan

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # It would print what strangers' files say.
    logging.getLogger("picklescan").setLevel(logging.CRITICAL + 1)
    job = _Job(**values)  # type: ignore[arg-type]  # made by asdict of one
    _limit_memory(job.memory_bytes)
    dimensions = onnx_trial.Dimensions(
        user_feature_dim=job.user_feature_dim,
        item_feature_dim=job.item_feature_dim,
        embedding_dim=job.embedding_dim,
    )
    answer: dict[str, str] | None = None
    try:
        if job.state_dict is not None:
            with borrow(pipe, job.state_dict_bytes) as weights:
                pickle_scan.scan(weights, job.state_dict, allowed=job.allowed_globals)
        onnx_trial.examine(Path(job.onnx), dimensions)
    except InvalidModelFileError as error:
        answer = {"error": "InvalidModelFileError", "name": error.name, "problem": error.reason}
    except (ModelCheckError, UnsafePickleError) as error:
        answer = {"error": type(error).__name__, "name": error.name, "problem": error.problem}
    except MemoryError:
        problem = "it needs more memory than check_memory_bytes in the settings allows"
        answer = {"error": "ModelCheckError", "name": Path(job.onnx).name, "problem": problem}
    pipe.send_bytes(json.dumps(answer).encode())


def _limit_memory(extra_bytes: int) -> None:
    """Let this process take so much more address space, and leave no core file; where the system knows such limits."""
    try:
        import resource
    except ImportError:
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    status = Path("/proc/self/statm")
    used = int(status.read_text().split()[0]) * resource.getpagesize() if status.exists() else 2_000_000_000
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = used + extra_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
