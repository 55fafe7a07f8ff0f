"""The description of a pickle: hostile programs are refused in one line, quickly, and with little memory."""

import re
import struct
import time

import pytest
import torch

from tools.convert import unpickled
from tools.convert.unpickled import Storage, View


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value):
    data = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def name(value):
    return b"c" + value.replace(" ", "\n").encode() + b"\n"


def numbers(values):
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(count=12, kind="torch FloatStorage", key=None):
    return b"(" + text("storage") + name(kind) + (key or text("0")) + text("cpu") + number(count) + b"tQ"


def tensor(size=(3, 4), stride=(4, 1), offset=0, held=None, hooks=b"}", more=b""):
    held = storage() if held is None else held
    inner = held + number(offset) + numbers(size) + numbers(stride) + b"\x89" + hooks + more
    return name(unpickled.TENSOR) + b"(" + inner + b"tR"


def load(program):
    return unpickled.load(b"\x80\x02" + program + b".")[0]


def test_what_is_described():
    view = View(Storage("0", torch.float32, 48), torch.float32, 0, (3, 4), (4, 1))
    assert load(tensor()) == view
    assert load(b"}(" + text("a") + tensor() + text("b") + b"K\x05u") == {"a": view, "b": 5}
    assert load(b"](" + tensor() + b"N\x88e") == [view, None, True]
    assert load(name(unpickled.DICT) + b")R" + text("a") + b"K\x01s}b") == {"a": 1}
    parameter = name(unpickled.PARAMETER) + tensor() + b"\x88}\x87R"
    assert load(parameter) == view
    data = b"\x80\x02K\x07." + b"rest"
    assert unpickled.load(data) == (7, 5)


@pytest.mark.parametrize("program, message", [
    (tensor(stride=(-4, 1)), "stride of a tensor is -4"),
    (tensor(offset=-1), "offset of a tensor is -1"),
    (tensor(size=(-3, 4)), "size of a tensor is -3"),
    (tensor(size=(3, 4), stride=(5, 1)), r"size \(3, 4\), strides \(5, 1\) at 0 lies in 12 numbers"),
    (tensor(offset=1), "at 1 lies in 12 numbers"),
    (tensor(offset=13, size=(0,), stride=(1,)), "at 13 lies in 12"),
    (tensor(size=(2**61, 8), stride=(0, 0)), "lies in 12 numbers"),
    (tensor(size=(4, 4), stride=(0, 1)), "lies in 12 numbers"),
    (tensor(size=(0, 2**62, 2**62), stride=(1, 1, 1)), "lies in 12 numbers"),
    (tensor(size=(2**63,), stride=(1,)), "size of a tensor is 9223372036854775808"),
    (tensor(size=(2**2000,), stride=(1,)), "size of a tensor is no number"),
    (tensor(size=(1,) * 65, stride=(1,) * 65), "65 sizes and 65 strides"),
    (tensor(size=(3, 4), stride=(4,)), "2 sizes and 1 strides"),
    (tensor(held=b"N"), "describes no tensor"),
    (tensor(held=storage(-1)), "size of a storage is -1"),
    (tensor(held=storage(2**63)), "size of a storage is 9223372036854775808"),
    (tensor(held=storage(kind="collections OrderedDict")), "no type that is known"),
    (tensor(held=storage(key=b"K\x01")), "names no storage"),
    (tensor(hooks=b"K\x01"), "has hooks"),
    (tensor(more=b"}" + text("conj") + b"\x88s"), "is conjugate"),
    (tensor(more=b"}}"), "in a way that is not known"),
    (name("os system") + text("true") + b"\x85R", "asks for 'os.system'"),
    (name("builtins eval"), "asks for 'builtins.eval'"),
    (name("torch._utils _rebuild_sparse_tensor"), "asks for 'torch._utils._rebuild_sparse_tensor'"),
    (name("a" * 5000 + " b"), "asks for 'a{80}'"),
    (name("torch FloatStorage") + b")R", "calls torch.FloatStorage in a way"),
    (name(unpickled.DICT) + b"]\x85R", "in a way that is not known"),
    (name(unpickled.DICT) + b")\x81", "asks for the operation NEWOBJ"),
    (b"I5\n", "asks for the operation INT"),
    (b"(i" + b"os\nsystem\n", "asks for the operation INST"),
    (b"\x94", "asks for the operation MEMOIZE"),
    (b"\x82\x01", "asks for the operation EXT1"),
    (text("x") + b"Q", "has a str where a tuple"),
    (text("x") + b"}b", "sets attributes of a str"),
    (b"N)b", "sets attributes of a NoneType"),
    (b"]K\x01b" * 2, "sets attributes of a list"),
    (b"h\x05", "takes 5, which it did not keep"),
    (b"", "takes what is not there"),
    (b"(", "takes what is not there"),
    (b"0", "takes what is not there"),
    (b"t", "takes what is not there"),
    (b"e", "takes what is not there"),
    (b"R", "takes what is not there"),
    (b"a", "takes what is not there"),
    (b"(a", "takes what is not there"),
    (b"}(K\x01u", "sets parts of a dict"),
    (b"]K\x01K\x01s", "sets parts of a list"),
    (b"}K\x01a", "adds to a dict"),
    (b"})K\x01s", "has a tuple as a key"),
    (b"X\xff\xff\xff\xff", "expected 4294967295 bytes"),
    (b"\x8b\xff\xff\xff\x7f", "not enough data"),
    (b"\xff", "opcode"),
])  # fmt: skip
def test_what_is_refused(program, message):
    with pytest.raises(ValueError) as error:
        load(program)
    assert re.search(message, str(error.value)) and len(str(error.value)) < 2000


def test_nested_containers_cost_nothing():
    """Each tuple holds the one before twice: looked at one by one there are 2 ** 200 of them."""
    program = b")q\x00" + b"h\x00h\x00\x86q\x00" * 200
    start = time.perf_counter()
    assert len(load(program)) == 2
    with pytest.raises(ValueError, match="has a tuple as a key"):
        load(program + b"}h\x00K\x01s")
    deep = load(b"]" * 100_000 + b"a" * 99_999)
    assert len(deep) == 1 and time.perf_counter() - start < 60
    while deep:  # one by one: freed at once they would be freed inside each other
        deep = deep[0]


def test_counts_are_bounded(monkeypatch):
    monkeypatch.setattr(unpickled, "MAX_OPERATIONS", 1000)
    assert load(b"N0" * 498 + b"N") is None
    with pytest.raises(ValueError, match="more than 1000 operations"):
        load(b"N0" * 600 + b"N")
    monkeypatch.setattr(unpickled, "MAX_BYTES", 100)
    with pytest.raises(ValueError):
        load(text("a" * 200))


def test_a_lone_surrogate_and_a_huge_number_are_values():
    assert load(b"X\x03\x00\x00\x00\xed\xa0\x80") == "\ud800"
    assert load(b"}" + text("a") + b"\x8a\xff" + b"\x7f" * 255 + b"s")["a"] > 2**2000
