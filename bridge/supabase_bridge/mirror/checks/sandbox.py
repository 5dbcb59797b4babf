"""Parse, join and check a version's files in a process with limits on time and memory.

The worker hands the process paths and bounded bytes; the process answers in JSON, so the worker unpickles nothing.
"""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from supabase_bridge.core.consumers import ANY_CONSUMER, Consumers
from supabase_bridge.core.documents import ModelMeta
from supabase_bridge.core.errors import LocalFileError
from supabase_bridge.mirror.checks.server import SERVER
from supabase_bridge.mirror.errors import CheckInterruptedError, Fault, ModelRejectedError
from supabase_bridge.mirror.onnx_file import (
    NO_GIVEN_INPUT,
    GivenInput,
    Structure,
    Tensor,
    join,
    read_structure,
    structure_of,
)
from supabase_bridge.mirror.source_files import FileEnds, FileParts, MissingPartError, ModelFile
from supabase_bridge.mirror.tower import cut_tower
from supabase_bridge.settings.model import Settings

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

_ENDS_BYTES = (256 * 1024, 16_000_000)
"""How much is read from each end of a PyTorch file: more where its pickle or its directory needs more."""
_PART_BYTES = 256 * 1024
_PARTS = 8
"""So many parts hold the structure of a model with few large tensors; each takes a request and a process."""
_CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


@dataclass(frozen=True, kw_only=True)
class Checks:
    """The checks of a version's files, each step in a process of its own. The worker itself parses none of the files.

    Attributes:
        timeout: For each step.
        memory_bytes: The memory that a step may use besides four times the files' size.
        allowed_globals: See `pickle.check_state_dict`.
        trial_warns: See `onnx.check_model`.
        consumers: See `consumers.check_consumers`.
    """

    timeout: timedelta
    memory_bytes: int
    allowed_globals: tuple[str, ...] = ()
    trial_warns: bool = False
    consumers: Consumers = ANY_CONSUMER

    @classmethod
    def of(cls, settings: Settings, *, trial_warns: bool = False, consumers: Consumers = ANY_CONSUMER) -> Checks:
        """Return the checks that the settings describe."""
        return cls(
            timeout=settings.check_timeout,
            memory_bytes=settings.check_memory_bytes,
            allowed_globals=settings.allowed_pickle_globals,
            trial_warns=trial_warns,
            consumers=consumers,
        )

    @property
    def for_repair(self) -> Checks:
        """The checks of a release that was complete before: consumers that were declared since do not refuse it."""
        return self if self.consumers.warns else replace(self, consumers=ANY_CONSUMER)

    def structure(self, path: Path) -> Structure:
        """Read the structure of an ONNX file.

        Raises:
            ModelRejectedError: see `onnx_file.read_structure`; or it took too much time or memory.
            CheckInterruptedError: the process was stopped from outside.
        """
        return _to_structure(self._run(path.name, path.stat().st_size, _structure, path))

    def structure_in_parts(self, file: ModelFile) -> Structure | None:
        """Read the structure of an ONNX file in the project from some parts of it; None: that would take too many.

        Raises:
            ModelRejectedError, CheckInterruptedError: see `structure`.
            StoreUnavailableError: see `ModelFile.ends`.
        """
        ends = file.ends(_PART_BYTES)
        parts = {0: ends.head, ends.size_bytes - len(ends.tail): ends.tail} if ends.tail else {0: ends.head}
        for _ in range(_PARTS):
            known = FileParts(size_bytes=ends.size_bytes, parts=parts)
            answer = self._run(file.name, sum(map(len, parts.values())), _structure_in_parts, known, file.name)
            if isinstance(answer, dict):
                return _to_structure(answer)
            parts[answer] = file.part(answer, min(_PART_BYTES, ends.size_bytes - answer))
        return None

    def join(self, path: Path, target: Path, *, size_bytes: int) -> None:
        """Write an ONNX model with the weights beside it to `target`; see `onnx_file.join`.

        Args:
            size_bytes: Of the model and its weights.

        Raises:
            ModelRejectedError, LocalFileError: see `onnx_file.join`; or it took too much time or memory.
            CheckInterruptedError: the process was stopped from outside.
        """
        self._run(path.name, size_bytes, join, path, target)

    def cut_tower(self, path: Path, target: Path, tower: str) -> None:
        """Write the part of an ONNX model that computes one tower to `target`; see `tower.cut_tower`.

        Raises:
            ModelRejectedError, LocalFileError: see `tower.cut_tower`; or it took too much time or memory.
            CheckInterruptedError: the process was stopped from outside.
        """
        self._run(path.name, path.stat().st_size, cut_tower, path, target, tower)

    def onnx(
        self,
        file: ModelFile,
        meta: ModelMeta,
        given: GivenInput = NO_GIVEN_INPUT,
        *,
        towers: Mapping[str, ModelFile] = MappingProxyType({}),
    ) -> tuple[str, ...]:
        """Check a version's ONNX model, and return notes on it for the release.

        Args:
            file: A local file; the trial needs all of it.
            meta: The release's description of the model.
            given: The version's own input example and signature.
            towers: The files that were cut from it, by the tower; they must give the same results.

        Raises:
            ModelRejectedError: see `onnx.check_model` and `consumers.check_consumers`; or the check took too much time
                or memory, or crashed the runtime.
            CheckInterruptedError: the process was stopped from outside.
        """
        cuts = {name: cut.local for name, cut in towers.items()}
        arguments = (file.local, meta, given, self.trial_warns, cuts, self.consumers)
        size_bytes = file.record.size_bytes + sum(cut.record.size_bytes for cut in towers.values())
        return tuple(self._run(file.local.name, size_bytes, _check_onnx, *arguments))

    def state_dict(self, file: ModelFile) -> None:
        """Check a version's PyTorch file, of which only the ends are read, wherever it is.

        Raises:
            ModelRejectedError: see `pickle.check_state_dict`; or the check took too much time or memory.
            CheckInterruptedError: the process was stopped from outside.
            StoreUnavailableError: see `ModelFile.ends`.
        """
        for limit in _ENDS_BYTES:
            if self._run(file.name, 2 * limit, _check_state_dict, file.ends(limit), file.name, self.allowed_globals):
                return
        problem = f"its pickle or its directory is larger than {_ENDS_BYTES[-1]} bytes"
        raise ModelRejectedError(file.name, Fault.UNSAFE, problem)

    def _run(self, name: str, size_bytes: int, step: Callable[..., Any], *arguments: object) -> Any:
        """Run one step in a process of its own, and return its answer."""
        memory_bytes = self.memory_bytes + 4 * size_bytes
        with SERVER.context() as context:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(theirs, memory_bytes, name, step, arguments), daemon=True)  # type: ignore[attr-defined]  # typeshed gives it to each kind of context, not to their base
            with ours:
                with theirs:
                    process.start()
                try:
                    answer = self._answer(process, ours, name)
                finally:
                    process.kill()
                    process.join()
                    process.close()
        if "fault" in answer:
            raise ModelRejectedError(answer["name"], Fault[answer["fault"]], answer["problem"])
        if "path" in answer:
            raise LocalFileError(Path(answer["path"]), answer["problem"])
        return answer["result"]

    def _answer(self, process: BaseProcess, pipe: Connection, name: str) -> dict[str, Any]:
        seconds = self.timeout.total_seconds()
        if not pipe.poll(seconds):
            problem = f"they took longer than {seconds:g} seconds (check_timeout in the settings)"
            raise ModelRejectedError(name, Fault.FAILED, problem)
        try:
            answer: dict[str, Any] = json.loads(pipe.recv_bytes(4_000_000))
        except (EOFError, ConnectionResetError):
            process.join()
            code = process.exitcode or 0
            if 0 < code < 128:
                problem = "the process that tried it failed; the worker's log has its error"
            elif -code in _CRASHES:
                problem = f"the process that tried it crashed ({signal.Signals(-code).name})"
            else:
                raise CheckInterruptedError(name) from None
            raise ModelRejectedError(name, Fault.FAILED, problem) from None
        return answer


def _to_structure(answer: Mapping[str, Any]) -> Structure:
    inputs, outputs = ([Tensor(**item) for item in answer[end]] for end in ("inputs", "outputs"))
    return Structure(**{**answer, "inputs": inputs, "outputs": outputs})


# --- in the process ---------------------------------------------------------------------------------------------------


def _serve(
    pipe: Connection, memory_bytes: int, name: str, step: Callable[..., Any], arguments: tuple[object, ...]
) -> None:
    """Run a step and send its answer; the process's main function."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # picklescan would log text from the trainer's file.
    logging.getLogger("picklescan").setLevel(logging.CRITICAL + 1)
    _limit_memory(memory_bytes)
    answer: dict[str, Any]
    try:
        answer = {"result": step(*arguments)}
    except ModelRejectedError as error:
        answer = {"fault": error.fault.name, "name": error.name, "problem": error.problem}
    except LocalFileError as error:
        answer = {"path": str(error.path), "problem": error.reason}
    except MemoryError:
        problem = "it needs more memory than check_memory_bytes in the settings allows"
        answer = {"fault": Fault.FAILED.name, "name": name, "problem": problem}
    pipe.send_bytes(json.dumps(answer).encode())


def _structure(path: Path) -> dict[str, Any]:
    return asdict(read_structure(path))


def _structure_in_parts(parts: FileParts, name: str) -> dict[str, Any] | int:
    """Return the position of the next part where the parts are too few to tell."""
    try:
        return asdict(structure_of(parts, name))
    except MissingPartError as missing:
        return missing.position


def _check_onnx(
    path: Path,
    meta: ModelMeta,
    given: GivenInput,
    trial_warns: bool,
    towers: Mapping[str, Path],
    consumers: Consumers,
) -> list[str]:
    from supabase_bridge.mirror.checks.consumers import check_consumers
    from supabase_bridge.mirror.checks.onnx import check_model

    notes = check_consumers(path, consumers, towers)
    return [*notes, *check_model(path, meta, given, trial_warns=trial_warns, towers=towers)]


def _check_state_dict(ends: FileEnds, name: str, allowed: tuple[str, ...]) -> bool:
    """Return False where the ends of the file are too short to tell."""
    from supabase_bridge.mirror.checks.pickle import TooFewBytesError, check_state_dict

    try:
        check_state_dict(ends, name, allowed=allowed)
    except TooFewBytesError:
        return False
    return True


def _limit_memory(extra_bytes: int) -> None:
    """Limit this process's address space to so much more than it uses, and its core file to nothing."""
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
