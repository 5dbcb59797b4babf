"""What torch.export.load would make of the JSON in its archive: which tensors it unpickles, and what code it evaluates.

A program is JSON, but parts of it become Python: sizes go through SymPy's parser, which evaluates them, guards and
names into generated source, and a tree's context may name a module to import. So each string must look harmless.

Source: torch/_export/serde/serialize.py, torch/export/pt2_archive/_package.py and torch/utils/_pytree.py of PyTorch.
"""

from __future__ import annotations

import json
import re

from supabase_bridge.errors import UnsafePickleError

_NESTING_LIMIT = 5
_FILE = re.compile(r"[A-Za-z0-9_\-]+(\.[A-Za-z0-9_\-]+)*")
_PLAIN = re.compile(r"[\w .,:@/<>|+*\[\]-]*")
_NAME = re.compile(r"\w+")
_OPERATOR = re.compile(
    r"torch\.ops\.(?!load_library\b)[a-z]\w*(\.(?!__)\w+|\.__i?(and|or|xor|lshift|rshift)__){1,2}"
    r"|torch\._?sym_\w+|math\.[a-z]\w*|#\w+:[\w.]+"
    r"|_operator\.(add|sub|mul|matmul|truediv|floordiv|mod|pow|neg|pos|abs|invert|eq|ne|lt|le|gt|ge|and_|or_|xor|not_"
    r"|lshift|rshift|getitem|index)"
)
_TOKEN = re.compile(r"'\w*'|(?P<word>[A-Za-z_]\w*)|[0-9]+(\.[0-9]*)?(e[+-]?[0-9]+)?|[-+*/%<>=!&|~(),\[\] ]|(?P<dot>\.)")
_SYMBOL = re.compile(r"_?[a-z]{1,3}[0-9]+")
_SYMPY = (
    "Symbol Integer Rational Float Add Mul Pow Max Min Mod Abs And Or Not Xor Eq Ne Lt Le Gt Ge Equality Unequality "
    "StrictGreaterThan StrictLessThan GreaterThan LessThan Piecewise ExprCondPair ITE ceiling floor sqrt exp log "
    "true false True False oo zoo Infinity NegativeInfinity evaluate precision commutative complex extended_real even "
    "finite infinite integer negative nonnegative nonpositive nonzero odd positive prime rational real zero"
)
_TORCH = (
    "FloorDiv ModularIndexing Where PythonMod CleanDiv CeilToInt FloorToInt CeilDiv LShift RShift PowByNatural "
    "FloatPow FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt "
    "RoundDecimal ToFloat Identity int_oo IntInfinity NegativeIntInfinity BitwiseFn_bitwise_and BitwiseFn_bitwise_or "
    "BitwiseFn_bitwise_xor"
)
_OPAQUE = "sqrt cos cosh sin sinh tan tanh asin acos atan exp log log2"
_GUARD = (
    "L size stride storage_offset item math floor ceil trunc sqrt isnan inf and or not if else max min abs int float "
    "torch sym_not sym_float sym_max sym_min"
)
_OF_AN_EXPRESSION = frozenset(
    {*_SYMPY.split(), *_TORCH.split(), *(f"OpaqueUnaryFn_{name}" for name in _OPAQUE.split())}
)
_OF_A_GUARD = _OF_AN_EXPRESSION | frozenset(_GUARD.split())


def is_program(member: str) -> bool:
    """Whether torch.export.load takes a member of its archive for a program. The name is in lower case."""
    return member.split("/")[1:2] == ["models"] or member.rpartition("/")[2] == "serialized_exported_program.json"


def is_payload(member: str) -> bool:
    """Whether a member is among the weights and constants, or says what they are. The name is in lower case."""
    return member.split("/")[1:3] in (["data", "weights"], ["data", "constants"])


def raw_payloads(data: bytes, name: str) -> tuple[set[str], set[str]]:
    """The files, in lower case, that a payload's description has read as bare bytes, and those it has unpickled.

    Raises:
        UnsafePickleError: it is not as torch.export.save writes it, so each reader could make another thing of it.
    """
    raw: set[str] = set()
    unpickled: set[str] = set()
    value = _parsed(data, name)
    payloads = value.get("config") if isinstance(value, dict) else None
    if not isinstance(payloads, dict):
        raise UnsafePickleError(name, "it does not say which tensors are which")
    for payload in payloads.values():
        file, is_pickle = (
            (payload.get("path_name"), payload.get("use_pickle")) if isinstance(payload, dict) else (None, None)
        )
        if not isinstance(file, str) or not _FILE.fullmatch(file) or not isinstance(is_pickle, bool):
            raise UnsafePickleError(name, "it does not say plainly which file a tensor is in and how to read it")
        (unpickled if is_pickle else raw).add(file.lower())
    return raw, unpickled


def scan_program(data: bytes, name: str) -> None:
    """Refuse a program that is more than PyTorch's operators on tensors and what sizes they have.

    Raises:
        UnsafePickleError: it is none of torch.export.save's, or what becomes Python is not plainly harmless.
    """
    try:
        _check(_parsed(data, name), "", name, 0)
    except RecursionError as error:
        raise UnsafePickleError(name, "it is nested too deep") from error


def _parsed(data: bytes, name: str) -> object:
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UnsafePickleError(name, f"it is not the JSON that it should be: {str(error)[:100]}") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name is there twice")
    return dict(pairs)


def _check(value: object, key: str, name: str, depth: int) -> None:
    """Look at every string; the key says what becomes of it."""
    if isinstance(value, dict):
        for inner, part in value.items():
            if inner in {"__enum__", "default_factory_module"} or not _PLAIN.fullmatch(inner):
                raise UnsafePickleError(name, f"loading it would import or evaluate what {inner[:80]!r} says")
            # Where a node came from: shown to people, compared, and looked up in PyTorch, but never called.
            if inner != "metadata":
                _check(part, inner, name, depth)
    elif isinstance(value, list):
        for part in value:
            _check(part, key, name, depth)
    elif isinstance(value, str) and not _is_harmless(value, key, name, depth):
        raise UnsafePickleError(name, f"loading it would evaluate {value[:80]!r}, which is no part of a tensor program")


def _is_harmless(text: str, key: str, name: str, depth: int) -> bool:
    if key == "expr_str":
        return _has_only(text, _OF_AN_EXPRESSION, dots=False)
    if key == "guards_code":
        return _has_only(text, _OF_A_GUARD, dots=True)
    if key in {"target", "as_operator"}:
        return _OPERATOR.fullmatch(text) is not None
    if key == "forward_arg_names":
        return _NAME.fullmatch(text) is not None
    if key in {"as_string", "as_strings"}:
        return True
    if text.lstrip()[:1] in {"{", "[", '"'} and depth < _NESTING_LIMIT:
        # A tree of inputs is JSON in a string, and its context JSON in a string of that.
        _check(_parsed(text.encode(errors="surrogatepass"), name), "", name, depth + 1)
        return True
    return _PLAIN.fullmatch(text) is not None


def _has_only(text: str, words: frozenset[str], *, dots: bool) -> bool:
    """Whether an expression has numbers, operators, symbols, and no names but these."""
    at = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        word = token and token["word"]
        if not token or (token["dot"] and not dots) or (word and word not in words and not _SYMBOL.fullmatch(word)):
            return False
        at = token.end()
    return True
