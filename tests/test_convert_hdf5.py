# The bounded reader of HDF5: it reads what the HDF5 library writes, and no file makes it hang.
from __future__ import annotations

import contextlib
import io
import itertools
import pathlib
import random
import re
import struct
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest

from tidegate.convert import _hdf5

FILES = pathlib.Path(__file__).parent / "keras_files"


@pytest.fixture(scope="module")
def h5py() -> Any:
    return pytest.importorskip("h5py")


def written(h5py: Any, write: Any, libver: str = "earliest", track_order: bool = False) -> bytes:
    stream = io.BytesIO()
    options = {"libver": (libver, "latest"), "track_order": track_order}
    with h5py.File(stream, "w", **options) as file:
        write(file)
    return stream.getvalue()


def many_features(h5py: Any, groups: int, track_order: bool) -> Any:
    """Writes each kind of attribute and dataset that is read, and groups of this many links."""

    def write(file: Any) -> None:
        layers = file.create_group("layers", track_order=track_order)
        for number in range(groups):
            layers.create_group(f"layer_{number}", track_order=track_order)
        for number in range(20):
            layers.attrs[f"attribute_{number}"] = "äx" * number
        file.attrs.update(fixed=np.bytes_(b"hello"), list=[b"abc", b"d"], text=["abc", "dé", ""])
        file.attrs.update(long="q" * 100_000, number=3, none=h5py.Empty("S3"))
        for dtype in (">f4", "<f4", "f8", "f2", "i8", "u1"):
            file[f"types/{dtype.strip('<>')}{dtype[0] == '>'}"] = np.arange(6).astype(dtype)
        file["opaque"] = np.frombuffer(b"abcdef", "V2")
        file["scalar"] = np.float32(3)
        file["empty"] = np.zeros((0, 3), np.float32)
        values = np.random.default_rng(0).normal(size=(50, 70)).astype(np.float32)
        file.create_dataset("zip", data=values, chunks=(16, 16), compression="gzip", shuffle=True)
        file.create_dataset("chunks", data=values.astype(float), chunks=(9, 70))
        file["soft"] = h5py.SoftLink("/zip")
        file["outside"] = h5py.ExternalLink("other.h5", "/zip")

    return write


def everything(h5py: Any, content: bytes) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Datasets, and attributes that are text, as the HDF5 library sees them."""

    def texts(item: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in item.attrs.items():
            if isinstance(value, (str, bytes)):
                found[name] = value if isinstance(value, str) else value.decode()
            elif isinstance(value, np.ndarray) and value.dtype.kind in "SO":
                found[name] = [x.decode() if isinstance(x, bytes) else x for x in value.tolist()]
        return found

    datasets, groups = {}, {}
    with h5py.File(io.BytesIO(content)) as file:
        groups[""] = texts(file)

        def note(name: str, item: Any) -> None:
            if isinstance(item, h5py.Dataset):
                datasets[name] = item[()]
            else:
                groups[name] = texts(item)

        file.visititems(note)
    return datasets, groups


def same_as_library(h5py: Any, content: bytes) -> None:
    datasets, groups = everything(h5py, content)
    file = _hdf5.read(io.BytesIO(content))
    assert file.groups == groups
    assert file.datasets.keys() == datasets.keys()
    for name, values in datasets.items():
        found = file.datasets[name].read()
        assert file.datasets[name].shape == found.shape
        wanted = np.asarray(values, values.dtype.newbyteorder("="))
        assert found.dtype == wanted.dtype
        assert found.tobytes() == wanted.tobytes()


@pytest.mark.parametrize("track_order", [False, True])
@pytest.mark.parametrize("libver", ["earliest", "v108"])
@pytest.mark.parametrize("groups", [3, 400])
def test_reads_what_the_library_writes(
    h5py: Any, groups: int, libver: str, track_order: bool
) -> None:
    """In both generations of the format, with few and with many links and attributes."""
    write = many_features(h5py, groups, track_order)
    same_as_library(h5py, written(h5py, write, libver, track_order))


@pytest.mark.parametrize("file", sorted(path.name for path in FILES.glob("*.h5")))
def test_reads_what_keras_writes(h5py: Any, file: str) -> None:
    same_as_library(h5py, (FILES / file).read_bytes())


def test_deep_trees(h5py: Any) -> None:
    """As many links as make the B-trees of both kinds of groups deeper."""

    def write(file: Any) -> None:
        for number in range(1300):
            file.create_group(f"{number:0100}")

    for libver in ("earliest", "v108"):
        file = _hdf5.read(io.BytesIO(written(h5py, write, libver)))
        assert file.groups.keys() == {"", *(f"{number:0100}" for number in range(1300))}


def test_features_that_are_not_read(h5py: Any) -> None:
    def refused(message: str, write: Any, **options: Any) -> None:
        file = _hdf5.read(io.BytesIO(written(h5py, write, **options)))
        with pytest.raises(ValueError, match=message):
            file.datasets["x"].read()

    values = np.zeros((4, 4), np.float32)
    names = np.array(["a"], "S3")

    def chunked(**options: Any) -> Any:
        return lambda file: file.create_dataset("x", data=values, chunks=(2, 2), **options)

    refused("its layout is of version [45], wanted 3", chunked(), libver="v110")
    refused("its filter 32000 is neither deflate", chunked(compression="lzf"))
    refused("its filter 3 is neither deflate", chunked(fletcher32=True))
    refused(
        "class 3 and 3 bytes, is not floating", lambda file: file.create_dataset("x", data=names)
    )
    refused("not floating point", lambda file: file.create_dataset("x", data=values > 0))
    refused("not floating point", lambda file: file.create_dataset("x", data=values * 1j))
    refused("its 64 bytes are not in", lambda file: file.create_dataset("x", (4, 4), np.float32))
    refused(
        f"its {2**42} bytes are not in",
        lambda file: file.create_dataset("x", (2**40,), np.float32, chunks=(1024,)),
    )


def test_not_hdf5() -> None:
    whole = (FILES / "keras2_back.h5").read_bytes()
    for content in (b"", b"x", whole[:8], whole[:200], whole[:-1], b"x" * 4096):
        with pytest.raises(ValueError, match=r"wanted|ends early|truncated|not in the file"):
            _hdf5.read(io.BytesIO(content))


def damaged(content: bytes, count: int, seed: int) -> Any:
    """This content with one byte, at an offset of its own, replaced."""
    chance = random.Random(seed)
    for offset in chance.sample(range(len(content)), count):
        flipped = content[offset] ^ (1 << chance.randrange(8))
        value = chance.choice([0, 1, 255, flipped, chance.randrange(256)])
        yield content[:offset] + bytes([value]) + content[offset + 1 :]


@pytest.mark.parametrize("libver", ["earliest", "v108"])
def test_any_damage_ends_in_values_or_a_value_error(h5py: Any, libver: str) -> None:
    def write(file: Any) -> None:
        many_features(h5py, 12, True)(file)
        del file.attrs["long"]

    for content in ((FILES / "keras2_lstm_hard.h5").read_bytes(), written(h5py, write, libver)):
        # Most bytes are those of arrays: the structures before them are of more interest.
        for part in (content[:4096], content):
            for changed in damaged(part, 150, seed=len(part)):
                with contextlib.suppress(ValueError):
                    file = _hdf5.read(io.BytesIO(changed + content[len(part) :]))
                    for dataset in file.datasets.values():
                        dataset.read()


def test_cycles_and_overlaps(h5py: Any) -> None:
    """A structure that leads back to itself, or is used again and again, exceeds the budget."""

    def refused(content: bytes, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            _hdf5.read(io.BytesIO(content))

    content = written(h5py, lambda file: file.create_group("a"))
    root = struct.unpack_from("<Q", content, 64)[0]
    # A header whose first message is a continuation that leads to the header's own messages.
    cycle = struct.pack("<HHB3xQQ", 0x10, 16, 0, root + 16, 24)
    refused(content[: root + 16] + cycle + content[root + 40 :], "overlap or are too large")

    # A B-tree whose child is itself; its level cannot fall.
    tree = content.index(b"TREE")
    entries = struct.pack("<BBH", 0, 1, 1) + bytes(16) + struct.pack("<QQ", 0, tree)
    refused(content[: tree + 4] + entries + content[tree + 4 + len(entries) :], "or level")

    # A list of texts that are all the same large object.
    def write(file: Any) -> None:
        file.attrs["large"] = "x" * 60_000
        file.attrs.create("many", ["y" * 8] * 2000, dtype=h5py.string_dtype())

    content = written(h5py, write)
    large = re.search(struct.pack("<I", 60_000) + b".{12}", content, re.DOTALL)
    many = re.search(b"(?:\x08\0\0\0.{12}){2000}", content, re.DOTALL)
    assert large is not None
    assert many is not None
    refused(
        content[: many.start()] + large[0] * 2000 + content[many.end() :],
        "overlap or are too large",
    )


def test_claims_take_no_memory(h5py: Any) -> None:
    """Chunks that share their bytes, and ratios that no weights have, are refused at once."""
    zeros = np.zeros((256, 1024), np.float32)

    def write(file: Any) -> None:
        file.create_dataset("x", data=zeros, chunks=(1, 1024), compression="gzip")

    def huge(file: Any) -> None:
        shape, chunk = (2**12, 2**12), (2**10, 2**10)
        file.create_dataset("x", shape, np.float32, chunks=chunk, compression="gzip")
        content = zlib.compress(bytes(2**22))
        for corner in itertools.product(range(0, 2**12, 2**10), repeat=2):
            file["x"].id.write_direct_chunk(corner, content)

    file = _hdf5.read(io.BytesIO(written(h5py, write)))
    assert not file.datasets["x"].read().any()
    content = written(h5py, huge)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=f"its {2**26} bytes are not in the file"):
            _hdf5.read(io.BytesIO(content)).datasets["x"].read()
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
