"""Files that were made to do harm: refused by name, nothing run, no memory or time taken."""

from __future__ import annotations

import io
import os
import pickle
import resource
import struct
import sys
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.errors import GeneratorError
from tests.trainer.model.networks import TINY2, tiny
from tests.trainer.model.official_form import official_modules, official_pickle, rosinality_state
from trainer.model.formats.symbolic_pickle import MAX_OPCODES, Call, Global, read_pickle
from trainer.model.load import load_generator, read_generator_file

MARKER = "HEARSCAPE_TEST_HARM"
SYSTEM = f"touch ${MARKER}".encode()


@pytest.fixture
def harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once something of a pickle was run."""
    path = tmp_path / "harm"
    monkeypatch.setenv(MARKER, str(path))
    return path


class _Reduce:
    """Pickles as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


def _text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def _pickled(*call: Any) -> bytes:
    return pickle.dumps({"G_ema": _Reduce(*call)})


POSIX_SYSTEM = b"cposix\nsystem\n"
HOSTILE = {
    "os.system by GLOBAL and REDUCE": (b"\x80\x02cos\nsystem\n" + _text(SYSTEM) + b"\x85R.", "os.system"),
    "posix.system by pickle itself": (_pickled(os.system, (SYSTEM.decode(),)), "posix.system"),
    "STACK_GLOBAL": (b"\x80\x04" + _text(b"os") + _text(b"system") + b"\x93" + _text(SYSTEM) + b"\x85R.", "os.system"),
    "STACK_GLOBAL out of the memory": (
        b"\x80\x04" + _text(b"os") + b"q\x00" + _text(b"system") + b"q\x01" + b"00h\x00h\x01\x93.",
        "os.system",
    ),
    "INST": (b"(S'" + SYSTEM + b"'\nios\nsystem\n.", "os.system"),
    "OBJ": (b"(" + POSIX_SYSTEM + _text(SYSTEM) + b"o.", "posix.system"),
    "NEWOBJ": (b"\x80\x02csubprocess\nPopen\n" + _text(SYSTEM) + b"\x85\x81.", "subprocess.Popen"),
    "NEWOBJ_EX": (b"\x80\x04csubprocess\nPopen\n" + _text(SYSTEM) + b"\x85}\x92.", "subprocess.Popen"),
    "eval": (b"\x80\x02cbuiltins\neval\n" + _text(b"1+1") + b"\x85R.", "builtins.eval"),
    "exec of Python 2": (b"c__builtin__\nexec\n" + _text(b"1+1") + b"\x85R.", "builtins.exec"),
    "a chain of getattr": (
        b"\x80\x02cbuiltins\ngetattr\ncos\nsystem\n" + _text(b"__call__") + b"\x86R" + _text(SYSTEM) + b"\x85R.",
        "builtins.getattr",
    ),
    "import": (b"\x80\x02cbuiltins\n__import__\n" + _text(b"os") + b"\x85R.", "builtins.__import__"),
    "torch.load": (b"\x80\x02ctorch\nload\n" + _text(b"/etc/passwd") + b"\x85R.", "torch.load"),
    "numpy's loader of code": (b"\x80\x02cnumpy.testing._private.utils\nrunstring\n.", "runstring"),
    "a dotted name below an allowed one": (b"\x80\x02ctorch.nn.modules.linear\nos.system\n.", "os.system"),
    "a module that only begins well": (b"\x80\x02ctorch.nn.modules.linear.os\nsystem\n.", "linear.os.system"),
    "a name with a line of its own": (
        b"\x80\x04" + _text(b"torch") + _text(b"FloatStorage\n") + b"\x93.",
        "FloatStorage",
    ),
    "extension registry": (b"\x80\x02\x82\x01.", "EXT1"),
    "extension registry, two bytes": (b"\x80\x02\x83\x01\x00.", "EXT2"),
    "extension registry, four bytes": (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
    "bytes from outside": (b"\x80\x05\x97.", "NEXT_BUFFER"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
@pytest.mark.parametrize("place", ["bare", "zip", "storage"])
def test_what_wants_to_run_is_refused_by_name(name: str, place: str, harm: Path, tmp_path: Path) -> None:
    data, word = HOSTILE[name]
    path = tmp_path / "network"
    path.write_bytes(_placed(data, place))
    modules = set(sys.modules)
    with pytest.raises(GeneratorError) as caught:
        load_generator(path)
    assert word in str(caught.value)
    assert str(path) in str(caught.value)
    assert not harm.exists()
    assert {name for name in set(sys.modules) - modules if not name.startswith("encodings.")} == set()


def _placed(data: bytes, place: str) -> bytes:
    """A hostile pickle as the file, as the pickle in a zip of torch, or as the storage of a tensor in an official file."""
    if place == "bare":
        return data
    if place == "zip":
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as opened:
            opened.writestr("archive/data.pkl", data)
        return file.getvalue()
    whole = official_pickle(TINY2, tiny(TINY2))
    inner = pickle.dumps(torch.zeros(8))
    storage = next(one for one in _bytes_in(read_pickle(inner, "")[0]) if len(one) > 50)
    start = whole.index(storage[:40])
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + pickle.dumps(1001, protocol=2)
    hostile = magic + pickle.dumps({"little_endian": True}, protocol=2) + data
    # the tensor's bytes carry their length before them
    old = whole[start - 1]
    if whole[start - 2 : start - 1] == b"C":
        return whole[: start - 2] + b"B" + struct.pack("<I", len(hostile)) + hostile + whole[start + old :]
    (size,) = struct.unpack("<I", whole[start - 4 : start])
    return whole[: start - 4] + struct.pack("<I", len(hostile)) + hostile + whole[start + size :]


def _bytes_in(record: Any) -> list[bytes]:
    if isinstance(record, bytes):
        return [record]
    if isinstance(record, Call):
        return [one for part in record.args for one in _bytes_in(part)]
    return [one for part in record for one in _bytes_in(part)] if isinstance(record, tuple) else []


def test_source_in_a_pickle_is_not_run(harm: Path, tmp_path: Path) -> None:
    path = tmp_path / "network.pkl"
    path.write_bytes(official_pickle(TINY2, tiny(TINY2)))
    assert b"raise SystemExit" in path.read_bytes()
    assert load_generator(path).resolution == 16
    assert "torch_utils" not in sys.modules
    assert not harm.exists()


def test_what_lies_outside_a_pickle_is_refused_where_nothing_can() -> None:
    with pytest.raises(GeneratorError, match="refers to data outside the file"):
        read_pickle(b"\x80\x02" + _text(b"key") + b"Q.", "here")


def test_state_of_a_name_cannot_be_set() -> None:
    for target in (b"ctorch\nFloatStorage\n", b"]", b"K\x01", b"X\x01\x00\x00\x00a"):
        with pytest.raises(GeneratorError, match="sets the state of"):
            read_pickle(b"\x80\x02" + target + b"}b.", "here")
    with pytest.raises(GeneratorError, match="calls dict, not a name"):
        read_pickle(b"\x80\x02})R.", "here")
    with pytest.raises(GeneratorError, match="imports something that is not a text"):
        read_pickle(b"\x80\x04]]\x93.", "here")
    made, _ = read_pickle(b"\x80\x02ctorch.nn.modules.linear\nLinear\n)\x81}X\x01\x00\x00\x00aK\x01sb.", "here")
    assert (made.name, made.state) == ("torch.nn.modules.linear.Linear", {"a": 1})
    assert read_pickle(b"\x80\x02ctorch\nfloat32\n.", "here")[0] == Global("torch.float32")


LENGTHS = {
    "BINBYTES8": b"\x80\x04\x8e" + struct.pack("<Q", 10 * 2**30) + b"abc",
    "BINUNICODE8": b"\x80\x04\x8d" + struct.pack("<Q", 10 * 2**30) + b"abc",
    "BYTEARRAY8": b"\x80\x05\x96" + struct.pack("<Q", 2**63 - 1) + b"abc",
    "BINBYTES": b"\x80\x04B" + struct.pack("<I", 2**32 - 1) + b"abc",
    "LONG4": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"abc",
    "FRAME": b"\x80\x04\x95" + struct.pack("<Q", 10 * 2**30),
}


@pytest.mark.parametrize("name", sorted(LENGTHS))
def test_lengths_that_lie_take_no_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "network.pkl"
    path.write_bytes(LENGTHS[name])
    tracemalloc.start()
    try:
        with pytest.raises(GeneratorError, match=r"damaged"):
            load_generator(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


BOMBS = {
    "nested lists": b"\x80\x02" + b"]" * 60_000 + b"a" * 59_999 + b".",
    "nested tuples": b"\x80\x02)" + b"\x85" * 60_000 + b".",
    "nested dictionaries": b"\x80\x02" + b"}K\x00" * 40_000 + b"}" + b"s" * 40_000 + b".",
    "nested marks": b"(" * 60_000 + b"t" * 59_999 + b".",
    "doubled over and over": b"\x80\x02]" + b"(2222eq\x00h\x00" * 1000 + b".",
    "one list copied over and over": b"\x80\x02]("
    + b"K\x00K\x00\x86" * 5000
    + b"eq\x000"
    + b"ccollections\nOrderedDict\nq\x010"
    + b"h\x01h\x00\x85R0" * 1000
    + b"N.",
    "a memory far away": b"\x80\x02]r" + struct.pack("<I", 2**32 - 1) + b".",
    "tuples as keys": b"\x80\x02)" + b"2\x86" * 64 + b"q\x00}h\x00K\x01s.",
    "numbers whose hashes are alike": b"\x80\x02}("
    + b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(1, 2000))
    + b"u.",
    "a dictionary of a text": b"ccollections\nOrderedDict\nX\x02\x00\x00\x00ab\x85R.",
    "too many steps": b"\x80\x02" + b"N0" * (MAX_OPCODES // 2 + 10) + b"N.",
    "a huge number": b"\x80\x02\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000 + b".",
    "a huge number in digits": b"L" + b"9" * 4000 + b"L\n.",
    "an object in itself": b"\x80\x02]q\x00h\x00a.",
    "nothing at all": b".",
    "no end": b"\x80\x02N",
    "popping what is not there": b"\x80\x020.",
    "a mark as a value": b"\x80\x02(.",
    "two objects": b"\x80\x02NN.",
    "an unknown step": b"\x80\x02\xff.",
    "text that is none": b"\x80\x02X\x02\x00\x00\x00\xff\xff.",
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_bombs_do_not_go_off(name: str, tmp_path: Path) -> None:
    path = tmp_path / "network.pkl"
    path.write_bytes(BOMBS[name])
    used, largest = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(GeneratorError) as caught:
        load_generator(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - largest < 200 * 2**10
    assert time.process_time() - used < 20
    assert len(str(caught.value)) < 600


LINEAR = b"ctorch.nn.modules.linear\nLinear\n"


def _put(place: int) -> bytes:
    return b"r" + struct.pack("<I", place)


def _get(place: int) -> bytes:
    return b"j" + struct.pack("<I", place)


def _long_names(depth: int, leaves: int, size: int) -> bytes:
    """Modules in each other, each under the same long key, and many below the last: names that copy the key for every leaf."""
    one = _get(0) + b")\x81}b"
    many = b"".join(_text(str(index).encode()) + one for index in range(leaves))
    made = b"\x80\x02" + LINEAR + _put(0) + b"0" + _text(b"k" * size) + _put(1) + b"0"
    made += _get(0) + b")\x81}" + _text(b"_modules") + b"}(" + many + b"usb"
    for _ in range(depth):
        made += _put(2) + b"0" + _get(0) + b")\x81}" + _text(b"_modules") + b"}" + _get(1) + _get(2) + b"ssb"
    return made + _put(3) + b"0}" + _text(b"G_ema") + _get(3) + b"s."


def _one_text_as_many_storages(count: int, size: int) -> bytes:
    """Tensors of one number, whose storages are all made of one long text."""
    legacy = [pickle.dumps(one, protocol=2) for one in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    persistent = b"(" + _text(b"storage") + b"ctorch\nFloatStorage\n" + _text(b"0") + _text(b"cpu") + b"K\x01NtQ."
    storage = b"".join(
        [*legacy, b"\x80\x02", persistent, pickle.dumps(["0"], protocol=2), struct.pack("<q", 1), b"\0" * 4]
    )
    text = (storage + b"x" * size).decode("latin-1").encode()
    names = (b"c_codecs\nencode\n", b"ctorch.storage\n_load_from_bytes\n", b"ctorch._utils\n_rebuild_tensor_v2\n")
    kept = [_text(text), *names, _text(b"latin1")]
    made = b"\x80\x02" + b"".join(one + _put(index) + b"0" for index, one in enumerate(kept))
    storage = _get(2) + _get(1) + _get(0) + _get(4) + b"\x86R\x85R"
    tensor = _get(3) + b"(" + storage + b"K\x00K\x01\x85K\x01\x85\x89NtR"
    many = b"".join(_text(b"p%d" % index) + tensor for index in range(count))
    made += LINEAR + b")\x81}" + _text(b"_parameters") + b"}(" + many + b"usb"
    return made + _put(5) + b"0}" + _text(b"G_ema") + _get(5) + b"s."


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (_long_names(30, 100, 1_000_000), "has a name that is no text or too long"),
        (_long_names(0, 5, 10), "is missing"),
        (_one_text_as_many_storages(3000, 1_000_000), "larger than the file"),
        (_one_text_as_many_storages(2, 10), "is missing"),
    ],
    ids=["a long name", "names", "many storages", "storages"],
)
def test_what_is_named_again_and_again_takes_no_memory(data: bytes, problem: str, tmp_path: Path) -> None:
    """Three GB each, where nothing held them back; the small ones are read as they are meant."""
    path = tmp_path / "network.pkl"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(GeneratorError, match=problem):
            load_generator(path)
        assert tracemalloc.get_traced_memory()[1] < 30 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "9" * 5000, '{"version": 1, "generator": ' + "9" * 5000 + "}", "null", "{"]
)
def test_a_header_of_ours_that_is_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "network.safetensors"
    save_file({"generator.a": torch.zeros(1)}, path, metadata={"hearscape_generator": text})
    with pytest.raises(GeneratorError, match=r"damaged or not complete|another version"):
        load_generator(path)


def test_a_zip_of_very_many_entries_and_names_from_outside(tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("archive/data.pkl", b"\x80\x04" + _text(b"os") + b"Q" + _text(b"system") + b"Q\x93.")
        for index in range(20_000):
            opened.writestr(f"archive/data/{index}", b"")
    with pytest.raises(GeneratorError, match="imports something that is not a text"):
        load_generator(path)


@pytest.mark.parametrize("key", ["_modules", "img_resolution", "_init_kwargs", "_parameters"])
def test_deep_nesting_inside_a_network(key: str, tmp_path: Path) -> None:
    whole = official_pickle(TINY2, tiny(TINY2), changes={"": {key: "PUT IT HERE"}})
    marked = b"\x8c\x0bPUT IT HERE\x94"
    assert marked in whole
    path = tmp_path / "network.pkl"
    path.write_bytes(whole.replace(marked, marked + b"0" + b"]" * 50_000 + b"a" * 49_999))
    if key in ("_init_kwargs", "_parameters"):
        assert load_generator(path).resolution == 16  # nothing there is looked at
    else:
        with pytest.raises(GeneratorError):
            load_generator(path)


def test_modules_in_a_circle(tmp_path: Path) -> None:
    # a module whose child is itself
    data = (
        b"\x80\x02}X\x05\x00\x00\x00G_emactorch.nn.modules.linear\nLinear\n)\x81q\x00"
        b"}X\x08\x00\x00\x00_modules}X\x01\x00\x00\x00ah\x00ssbs."
    )
    path = tmp_path / "network.pkl"
    path.write_bytes(data)
    with pytest.raises(GeneratorError, match="too deeply or in a circle"):
        load_generator(path)


def _tensor_record(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> Any:
    tensor = torch.zeros(8)
    return _Reduce(
        torch._utils._rebuild_tensor_v2,
        (
            torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True),
            *(offset, shape, stride, False, OrderedDict()),
        ),
    )


@pytest.mark.parametrize(
    ("shape", "stride", "offset"),
    [
        ((2**30, 64), (0, 0), 0),
        ((9,), (1,), 0),
        ((4,), (3,), 0),
        ((8,), (1,), 1),
        ((8,), (1,), -1),
        ((-1,), (1,), 0),
        ((2**50,), (0,), 0),
        ((8,), (1, 1), 0),
        ((1,) * 70, (1,) * 70, 0),
    ],
)
def test_tensors_cannot_be_larger_than_the_file(
    shape: tuple[int, ...], stride: tuple[int, ...], offset: int, tmp_path: Path
) -> None:
    change = {"_parameters": OrderedDict(weight=_tensor_record(shape, stride, offset))}
    path = tmp_path / "network.pkl"
    path.write_bytes(official_pickle(TINY2, tiny(TINY2), changes={"mapping.fc0": change}))
    with pytest.raises(
        GeneratorError, match=r"reaches beyond its 8 numbers|the shape of a tensor is not a list of sizes"
    ):
        load_generator(path)


def test_one_storage_cannot_be_copied_without_end(tmp_path: Path) -> None:
    shared = torch.zeros(200_000)
    state = {f"convs.{index}.conv.weight": shared for index in range(99)}
    path = tmp_path / "network.pt"
    torch.save({"g_ema": state}, path)
    with pytest.raises(GeneratorError, match="larger than the file"):
        load_generator(path)


def test_zips_that_would_grow(tmp_path: Path) -> None:
    path = tmp_path / "network.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("archive/data.pkl", b"]" * 2**20)
    with pytest.raises(GeneratorError, match="is compressed or locked"):
        load_generator(path)
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("readme", b"hello")
    with pytest.raises(GeneratorError, match=r"a zip, but not one of torch.save"):
        load_generator(path)


def test_storages_that_are_missing_or_short(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.pt", tmp_path / "network.pt"
    torch.save({"g_ema": rosinality_state(tiny(TINY2))}, whole)
    for change, problem in (("leave", "storage '0' is missing"), ("cut", "reaches beyond its")):
        with zipfile.ZipFile(whole) as read, zipfile.ZipFile(path, "w") as write:
            for name in read.namelist():
                data = read.read(name)
                if name.endswith("data/0"):
                    if change == "leave":
                        continue
                    data = data[:4]
                write.writestr(name, data)
        with pytest.raises(GeneratorError, match=problem):
            load_generator(path)


def test_a_config_cannot_ask_for_memory(tmp_path: Path) -> None:
    """A network of 65,536 channels would need 300 GB: it is held against the file before any of it is made."""
    path = tmp_path / "network.pkl"
    changes: dict[str, dict[str, Any]] = {"": {"z_dim": 65536, "c_dim": 65536, "img_resolution": 16}}
    path.write_bytes(official_pickle(TINY2, tiny(TINY2), changes=changes))
    held = read_generator_file(path)
    assert held.config.z_dim == 65536
    with pytest.raises(GeneratorError, match="does not hold a Generator that fits"):
        held.generator()


def test_the_pickle_maker_of_these_tests_would_do_harm(harm: Path) -> None:
    """Read by pickle itself, these files do what they say: the refusals above are not of harmless bytes."""
    with official_modules():
        pickle.loads(HOSTILE["os.system by GLOBAL and REDUCE"][0])
    assert harm.exists()
