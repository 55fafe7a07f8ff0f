"""A pickle read as a description, without running anything: containers, numbers, texts, and where tensors lie.

A pickle is a program for a small machine with a stack (PEP 307). This is that machine for the programs that
`torch.save` writes of a state dict. It calls nothing and imports nothing: the few names that it knows stand for values
of its own, and whatever else a file asks for is refused.
"""

import dataclasses
import io
import math
import pickletools

import torch

# A checkpoint of 10,000 tensors has half a million operations; each leaves one object at most.
MAX_BYTES, MAX_OPERATIONS = 2**25, 2**22
LARGEST = 2**62  # of a number that says how many
MAX_DIMS = 64  # torch's own limit

KINDS = {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexFloat": torch.complex64, "ComplexDouble": torch.complex128,
}  # fmt: skip
STORAGES = {f"torch {name}Storage": dtype for name, dtype in KINDS.items()}
STORAGES["torch.storage UntypedStorage"] = torch.uint8
# Newer types have no storages of their own.
DTYPES = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
DTYPES = {f"torch {name}": getattr(torch, name) for name in DTYPES}
DICT, TENSOR, TENSOR_OF_TYPE, PARAMETER = (
    "collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
)  # fmt: skip
# Lightning's checkpoints file the state of a callback under its class; taming-transformers' were written by Lightning.
LIGHTNING = "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint"
NAMES = {*STORAGES, *DTYPES, DICT, TENSOR, TENSOR_OF_TYPE, PARAMETER, LIGHTNING}


@dataclasses.dataclass(frozen=True)
class Name:
    """What a file names and does not contain; it stands for itself alone."""

    text: str


@dataclasses.dataclass(frozen=True)
class Storage:
    """Bytes of a file, by the key that it has for them. `dtype`: how their numbers are counted."""

    key: str
    dtype: torch.dtype
    num_bytes: int


@dataclasses.dataclass(frozen=True)
class View:
    """A tensor inside a storage, known to lie in it whole. `offset` and `stride` count numbers."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    size: tuple
    stride: tuple


_MARK = object()


def load(data):
    """(what a pickle at the beginning of `data` describes, the number of its bytes).

    Raises ValueError, one line, for a pickle that is damaged, too large, or asks for more than tensors.
    """
    stream = io.BytesIO(data[:MAX_BYTES])
    stack, memo = [], {}
    for count, (operation, value, _) in enumerate(pickletools.genops(stream)):
        if count == MAX_OPERATIONS:
            raise ValueError(f"more than {MAX_OPERATIONS} operations")
        name = operation.name
        if name == "STOP":
            return _pop(stack), stream.tell()
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[value] = _top(stack)
        elif name in ("BINGET", "LONG_BINGET"):
            if value not in memo:
                raise ValueError(f"takes {value}, which it did not keep")
            stack.append(memo[value])
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            stack.append(value)
        elif name in _OPERATIONS:
            _OPERATIONS[name](stack)
        elif name == "GLOBAL":
            if value not in NAMES:
                raise ValueError(f"asks for {value.replace(' ', '.', 1)[:80]!r}")
            stack.append(Name(value))
        elif name != "PROTO":
            raise ValueError(f"asks for the operation {name}")
    raise ValueError("ends early")


def _top(stack):
    if not stack or stack[-1] is _MARK:
        raise ValueError("takes what is not there")
    return stack[-1]


def _pop(stack, kind=object):
    """The last value. Raises ValueError where it is none of that kind."""
    value = _top(stack)
    if not isinstance(value, kind):
        raise ValueError(f"has a {type(value).__name__} where a {kind.__name__} belongs")
    return stack.pop()


def _since_mark(stack):
    values = []
    while stack and stack[-1] is not _MARK:
        values.append(stack.pop())
    if not stack:
        raise ValueError("takes what is not there")
    stack.pop()
    return values[::-1]


def _tuple(stack, length):
    stack.append(tuple([_pop(stack) for _ in range(length)][::-1]))


def _extend(stack, values):
    into = _top(stack)
    if not isinstance(into, list):
        raise ValueError(f"adds to a {type(into).__name__}")
    into.extend(values)


def _set(stack, values):
    into = _top(stack)
    if not isinstance(into, dict) or len(values) % 2:
        raise ValueError(f"sets parts of a {type(into).__name__}")
    for key, value in zip(values[::2], values[1::2], strict=True):
        # No tuples: the hash of nested ones may take for ever.
        if not isinstance(key, (str, int, float, Name)):
            raise ValueError(f"has a {type(key).__name__} as a key")
        into[key] = value


def _build(stack):
    """Attributes of a dict, such as the _metadata of a state dict: they are left."""
    _pop(stack)
    if not isinstance(_top(stack), dict):
        raise ValueError(f"sets attributes of a {type(_top(stack)).__name__}")


def _storage(stack):
    """("storage", type, key, device, number of numbers), and in files without zip a sixth, None."""
    given = _pop(stack, tuple)
    if len(given) == 6 and given[5] is None:
        given = given[:5]
    if len(given) != 5 or given[0] != "storage" or not isinstance(given[2], str):
        raise ValueError("names no storage where one belongs")
    if not isinstance(given[1], Name) or given[1].text not in STORAGES:
        raise ValueError("names a storage of no type that is known")
    dtype = STORAGES[given[1].text]
    stack.append(Storage(given[2], dtype, _count(given[4], "size of a storage") * dtype.itemsize))


def _call(stack):
    """The few functions that describe a tensor."""
    arguments, function = _pop(stack, tuple), _pop(stack, Name).text
    if function == DICT and not arguments:
        stack.append({})
    elif function == PARAMETER and len(arguments) == 3 and isinstance(arguments[0], View):
        stack.append(arguments[0])
    elif function == TENSOR and len(arguments) in (6, 7):
        stack.append(_view(*arguments[:6], None, *arguments[6:]))
    elif function == TENSOR_OF_TYPE and len(arguments) in (7, 8):
        stack.append(_view(*arguments))
    else:
        raise ValueError(f"calls {function.replace(' ', '.')} in a way that is not known")


def _view(storage, offset, size, stride, _, hooks, dtype, metadata=None):
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise ValueError("describes no tensor where one belongs")
    if hooks not in (None, {}) or metadata not in (None, {}):
        raise ValueError("a tensor has hooks, or is conjugate or negative until it is looked at")
    if dtype is None:
        dtype = storage.dtype
    elif isinstance(dtype, Name) and dtype.text in DTYPES:
        dtype = DTYPES[dtype.text]
    else:
        raise ValueError("a tensor has no type that is known")
    if len(size) != len(stride) or len(size) > MAX_DIMS:
        raise ValueError(f"a tensor has {len(size)} sizes and {len(stride)} strides")
    offset = _count(offset, "offset of a tensor")
    size = tuple(_count(n, "size of a tensor") for n in size)
    stride = tuple(_count(n, "stride of a tensor") for n in stride)
    held, wanted = storage.num_bytes // dtype.itemsize, math.prod(size)
    last = offset + (sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if wanted else -1)
    # No more numbers than the storage has: strides of 0 would make a few bytes a tensor without end.
    if last >= held or wanted > held or math.prod(max(n, 1) for n in size) > LARGEST:
        raise ValueError(f"a tensor of size {size}, strides {stride} at {offset} lies in {held} numbers")
    return View(storage, dtype, offset, size, stride)


def _count(value, what):
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise ValueError(f"the {what} is {value if type(value) is int and abs(value) < 10**30 else 'no number'}")
    return value


_CONSTANTS = {"NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict,
              "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "MARK": lambda: _MARK}  # fmt: skip
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "BINSTRING", "SHORT_BINSTRING"}
_OPERATIONS = {
    "POP": _pop,
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": lambda stack: _tuple(stack, 1),
    "TUPLE2": lambda stack: _tuple(stack, 2),
    "TUPLE3": lambda stack: _tuple(stack, 3),
    "APPEND": lambda stack: _extend(stack, [_pop(stack)]),
    "APPENDS": lambda stack: _extend(stack, _since_mark(stack)),
    "SETITEM": lambda stack: _set(stack, [_pop(stack), _pop(stack)][::-1]),
    "SETITEMS": lambda stack: _set(stack, _since_mark(stack)),
    "BUILD": _build,
    "BINPERSID": _storage,
    "REDUCE": _call,
}
