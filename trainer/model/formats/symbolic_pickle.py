"""Reads pickles as data: a pickle machine that imports nothing and calls nothing.

A pickle is a program. This machine builds its numbers, texts, bytes and containers. A name becomes a ``Global``, and a call becomes a
``Call``, a record of the name and the arguments. Names that no checkpoint needs are refused at once. Work and memory are bounded by the
length of the file.
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any, cast

from pipeline.errors import GeneratorError

MAX_OPCODES = 200_000
"""Largest number of steps. A file with both networks and the averaged generator has about 8,000, whatever the sizes of its tensors."""
MAX_NUMBER_BYTES = 32
"""Largest length of an integer, in bytes."""
MAX_KEY = 2**31
"""Limit of integers as keys."""
MAX_SHOWN = 100
"""Largest number of letters of a name in a message."""

NAMES = frozenset(
    {
        "torch_utils.persistence._reconstruct_persistent_obj",
        "dnnlib.util.EasyDict",
        "collections.OrderedDict",
        "argparse.Namespace",
        "copyreg._reconstructor",
        "builtins.object",
        "builtins.set",
        "builtins.frozenset",
        "builtins.bytearray",
        "_codecs.encode",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.nn.parameter.Parameter",
        "torch.storage._load_from_bytes",
        "torch.Size",
        "torch.device",
        "numpy.ndarray",
        "numpy.dtype",
        *(f"numpy.{package}.multiarray.{name}" for package in ("core", "_core") for name in ("_reconstruct", "scalar")),
    }
)
"""The names that checkpoints use. Code that reads the records decides what they mean."""
_NAME_PATTERNS = re.compile(
    r"torch\.nn\.modules\.[a-z0-9_]+\.[A-Za-z0-9_]+"
    r"|torch\.(Float|Half|Double|BFloat16|Long|Int|Short|Char|Byte|Bool)Storage"
    r"|torch\.(float|half|double|bfloat|int|uint)[0-9]*|torch\.bool"
)
_PYTHON_2 = {"copy_reg": "copyreg", "__builtin__": "builtins"}
_MAPPINGS = ("collections.OrderedDict", "dnnlib.util.EasyDict")
_MARK = object()


@dataclass(frozen=True, slots=True)
class Global:
    """A name that pickle would import."""

    name: str


@dataclass(slots=True, eq=False)
class Call:
    """A call that pickle would make to create an object, and the state that it would set."""

    name: str
    args: tuple[Any, ...]
    state: Any = None
    members: list[Any] = field(default_factory=list)
    """Items that would be appended, or set as (key, value)."""


@dataclass(frozen=True, slots=True, eq=False)
class Persistent:
    """A reference to data outside the pickle: in torch's files, a storage."""

    key: Any


class Window:
    """A file-like view of bytes for the opcode reader. Reading past the end raises GeneratorError."""

    def __init__(self, data: memoryview, position: int, origin: str) -> None:
        self._data, self._position, self._origin = data, position, origin

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= len(self._data) - self._position:
            left = len(self._data) - self._position
            raise GeneratorError(
                f"{self._origin} says that {size:,} bytes follow where {left:,} are left; it is damaged"
            )
        self._position += size
        return bytes(self._data[self._position - size : self._position])

    def readline(self) -> bytes:
        end = self._position
        while end < len(self._data):  # a memoryview has no find: search piece by piece
            piece = bytes(self._data[end : end + 4096])
            if (newline := piece.find(b"\n")) >= 0:
                return self.read(end + newline + 1 - self._position)
            end += len(piece)
        return self.read(len(self._data) - self._position)


def read_pickle(data: bytes | memoryview, origin: str, *, start: int = 0, persistent: bool = False) -> tuple[Any, int]:
    """The object of one pickle, and the position of its end. ``persistent``: references to data outside the pickle are allowed.

    Keys of dictionaries are texts, integers, bytes or None; sets become lists. Raises GeneratorError, with the file name ``origin``, for
    a pickle that is damaged, uses a name that no checkpoint needs, or is too large.
    """
    window = Window(memoryview(data), start, origin)
    machine = _Machine(origin, persistent)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(cast("IO[bytes]", window))):
            if count == MAX_OPCODES:
                raise GeneratorError(f"{origin} has more than {MAX_OPCODES:,} steps; no generator needs as many")
            machine.step(opcode.name, argument)
    except GeneratorError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        # errors of the opcode reader and of an empty stack: the pickle is damaged
        raise GeneratorError(
            f"{origin} is damaged or no pickle ({type(error).__name__}: {str(error)[:200]})"
        ) from error
    if len(machine.stack) != 1:
        raise GeneratorError(f"{origin} is damaged: its pickle leaves {len(machine.stack)} objects")
    return machine.stack[0], window.tell()


class _Machine:
    """Stack and memo of the pickle machine, with one method for each kind of step."""

    def __init__(self, origin: str, persistent: bool) -> None:
        self.origin, self.persistent = origin, persistent
        self.stack: list[Any] = []
        self.memory: dict[int, Any] = {}
        self.num_copied = 0
        """Items that were copied from one dictionary to another."""

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _PUSHES:
            self._push_number(argument) if isinstance(argument, int) else self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in _STEPS:
            _STEPS[opcode](self, argument)
        elif opcode not in _IGNORED:
            raise GeneratorError(f"{self.origin} uses {opcode}, which checkpoints have no use for; it is refused")

    def _push_number(self, number: int) -> None:
        if number.bit_length() > 8 * MAX_NUMBER_BYTES:
            raise GeneratorError(f"{self.origin} holds a number of {number.bit_length():,} bits; it is refused")
        self.stack.append(number)

    def since_mark(self) -> list[Any]:
        """Removes the last mark and everything above it from the stack, and returns what was above it."""
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                members = self.stack[index + 1 :]
                del self.stack[index:]
                return members
        raise IndexError("no mark")

    def put(self, index: Any) -> None:
        if self.stack[-1] is _MARK:
            raise ValueError("a mark cannot be kept")
        self.memory[int(index)] = self.stack[-1]

    def name(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise GeneratorError(f"{self.origin} imports something that is not a text; it is refused")
        full = f"{_PYTHON_2.get(module, module)}.{name}"
        if full not in NAMES and not _NAME_PATTERNS.fullmatch(full):
            hint = ""
            if module.startswith("dnnlib.tflib"):
                hint = ". It is a TensorFlow network: convert it with the tools of its authors first"
            raise GeneratorError(
                f"{self.origin} names {full[:MAX_SHOWN]!r}, which is no part of a generator; nothing of it was "
                f"imported or run{hint}"
            )
        self.stack.append(Global(full))

    def call(self, function: object, args: object) -> None:
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise GeneratorError(f"{self.origin} calls {type(function).__name__}, not a name; it is refused")
        if function.name in _MAPPINGS:
            self.stack.append({})
            self._fill(args[0] if args else [])
        else:
            self.stack.append(Call(function.name, args))

    def _fill(self, source: object) -> None:
        """Fills the dictionary on top of the stack from another dictionary, or from a list of pairs."""
        if not isinstance(source, dict | list | tuple):
            raise GeneratorError(f"{self.origin} makes a dictionary of {type(source).__name__}; it is refused")
        self.num_copied += len(source)  # one list may be referenced many times
        if self.num_copied > MAX_OPCODES:
            raise GeneratorError(f"{self.origin} copies its dictionaries too often; it is refused")
        for key, value in source.items() if isinstance(source, dict) else source:
            self.set_items([key, value])

    def set_items(self, members: list[Any]) -> None:
        target = self.stack[-1]
        if len(members) % 2:
            raise ValueError("a key without a value")
        pairs = list(zip(members[::2], members[1::2], strict=True))
        if isinstance(target, dict):
            for key, value in pairs:
                # hashing a nested tuple can take exponential time, and large integers can be chosen to collide
                if not isinstance(key, str | bytes | None) and not (isinstance(key, int) and abs(key) < MAX_KEY):
                    raise GeneratorError(f"{self.origin} has a {type(key).__name__} as a key; it is refused")
                target[key] = value
        elif isinstance(target, Call):
            target.members.extend(pairs)
        else:
            raise GeneratorError(f"{self.origin} sets items of {type(target).__name__}; it is refused")

    def append(self, members: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(members)
        elif isinstance(target, Call):
            target.members.extend(members)
        else:
            raise GeneratorError(f"{self.origin} appends to {type(target).__name__}; it is refused")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Call):
            target.state = state
        elif not isinstance(target, dict):  # attributes of a dictionary, such as a state dict's versions, are not kept
            raise GeneratorError(f"{self.origin} sets the state of {type(target).__name__}; it is refused")

    def persistent_key(self, key: object) -> None:
        if not self.persistent:
            raise GeneratorError(f"{self.origin} refers to data outside the file; it is refused")
        self.stack.append(Persistent(key))

    def tuple_of(self, size: int) -> None:
        members = tuple(self.stack[-size:])
        if len(members) != size or any(member is _MARK for member in members):
            raise IndexError("too little on the stack")
        self.stack[-size:] = [members]

    def popped(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise IndexError("a mark where a value should be")
        return value

    def dictionary(self) -> None:
        members = self.since_mark()
        self.stack.append({})
        self.set_items(members)

    def instance(self, names: str) -> None:
        args = tuple(self.since_mark())
        self.name(*names.split(" ", 1))
        self.call(self.stack.pop(), args)

    def marked_object(self) -> None:
        function, *args = self.since_mark()
        self.call(function, tuple(args))

    def new_with_keywords(self) -> None:
        keywords, args, function = self.popped(), self.popped(), self.popped()
        if keywords:
            raise GeneratorError(f"{self.origin} makes an object with keywords; it is refused")
        self.call(function, args)


_IGNORED = {"PROTO", "FRAME", "STOP"}
_PUSHES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "EMPTY_SET": list,
    "MARK": lambda: _MARK,
}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "POP": lambda m, _: m.stack.__delitem__(-1),
    "POP_MARK": lambda m, _: m.since_mark().clear(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": lambda m, _: m.put(len(m.memory)),
    "GET": lambda m, index: m.stack.append(m.memory[int(index)]),
    "BINGET": lambda m, index: m.stack.append(m.memory[index]),
    "LONG_BINGET": lambda m, index: m.stack.append(m.memory[index]),
    "LIST": lambda m, _: m.stack.append(m.since_mark()),
    "TUPLE": lambda m, _: m.stack.append(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.tuple_of(1),
    "TUPLE2": lambda m, _: m.tuple_of(2),
    "TUPLE3": lambda m, _: m.tuple_of(3),
    "FROZENSET": lambda m, _: m.stack.append(m.since_mark()),
    "DICT": lambda m, _: m.dictionary(),
    "APPEND": lambda m, _: m.append([m.popped()]),
    "APPENDS": lambda m, _: m.append(m.since_mark()),
    "ADDITEMS": lambda m, _: m.append(m.since_mark()),
    "SETITEM": lambda m, _: m.set_items([m.popped(), m.popped()][::-1]),
    "SETITEMS": lambda m, _: m.set_items(m.since_mark()),
    "GLOBAL": lambda m, names: m.name(*names.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*[m.popped(), m.popped()][::-1]),
    "REDUCE": lambda m, _: m.call(*[m.popped(), m.popped()][::-1]),
    "NEWOBJ": lambda m, _: m.call(*[m.popped(), m.popped()][::-1]),
    "NEWOBJ_EX": lambda m, _: m.new_with_keywords(),
    "INST": _Machine.instance,
    "OBJ": lambda m, _: m.marked_object(),
    "BUILD": lambda m, _: m.build(),
    "PERSID": _Machine.persistent_key,
    "BINPERSID": lambda m, _: m.persistent_key(m.popped()),
}
