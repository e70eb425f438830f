"""A bounded reader of HDF5 files: groups, datasets of numbers, and attributes that are text.

Model files are downloaded, so they are not trusted. On some damaged files the HDF5 library loops
for ever or reads memory out of bounds, and a caller in the same process can neither time out nor
catch that. A subprocess with a time limit would contain it, but it needs a Python executable (an
embedded interpreter has none, a frozen application is its own), repeats the imports at each call,
and its limit is wrong on a slow disk. Keras writes only a small part of the format, so it is read
here, with NumPy alone. No link out of the file is followed, each allocation is checked against what
is stored, and the work is bounded by the file's size: structures that overlap or form a cycle
exceed a budget, which a valid file cannot.

Superblocks of version 0 to 3, both kinds of object headers and of groups, and compact, contiguous
and chunked datasets are read, the latter also with deflate and shuffle. That is what the HDF5
library writes unless it is told to use features later than version 1.8. Anything else is a
ValueError that names the feature. Checksums of metadata are not verified.

The names follow the specification, "HDF5 File Format Specification Version 3.0".
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from tidegate.checks import Array

SIGNATURE = b"\x89HDF\r\n\x1a\n"

_UNDEFINED = 2**64 - 1  # the address of an object that does not exist
_DEEPEST = 256  # nested groups; Keras nests two for each model within a model
_LARGEST_METADATA = 2**26  # bytes of structures and text that are read from one file
_LARGEST_RANK = 32
_DEEPEST_TREE = 16  # levels of a B-tree; each has at least twice as many nodes as the one above

# Types of the messages in object headers.
_DATASPACE = 0x01
_LINK_INFO = 0x02
_DATATYPE = 0x03
_LINK = 0x06
_EXTERNAL_FILES = 0x07
_LAYOUT = 0x08
_FILTERS = 0x0B
_ATTRIBUTE = 0x0C
_CONTINUATION = 0x10
_SYMBOL_TABLE = 0x11
_ATTRIBUTE_INFO = 0x15

_SHARED = 2  # a message's flag: its content is stored elsewhere


def largest_expansion(stored: int) -> int:
    """The most bytes that this many compressed bytes may claim to expand to.

    Deflate reaches a ratio of 1032 on constants, and hardly 2 on trained weights. A small array of
    zeros is legitimate; a large one would take memory that the file is too small for.
    """
    return 2**24 + 64 * stored


# ---- Bytes ---------------------------------------------------------------------------------------


class _Source:
    """The file's bytes. Structures, but not the data of datasets, are charged to a budget."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.size = stream.seek(0, 2)
        # The structures of a valid file do not overlap; some are read twice.
        self._budget = min(4 * self.size + 2**16, _LARGEST_METADATA)

    def charge(self, count: int) -> None:
        self._budget -= count
        if self._budget < 0:
            raise ValueError("its structures overlap or are too large")

    def data(self, address: int, count: int) -> bytes:
        """Raw bytes of a dataset."""
        if address + count > self.size:
            raise ValueError(f"{count} bytes at {address} are not in the file")
        self._stream.seek(address)
        found = self._stream.read(count)
        if len(found) != count:
            raise ValueError(f"{count} bytes at {address} are not in the file")
        return found

    def structure(self, address: int, count: int) -> _Fields:
        self.charge(count + 16)  # an empty structure takes time too
        return _Fields(self.data(address, count))


class _Fields:
    """Consecutive fields of a structure; little-endian, as everywhere in HDF5."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise ValueError("a structure ends early")
        self._at += count
        return self._data[self._at - count : self._at]

    def uint(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def uints(self, count: int, size: int = 8) -> list[int]:
        data = self.take(count * size)
        return [int.from_bytes(data[at : at + size], "little") for at in range(0, len(data), size)]

    def expect(self, *wanted: bytes) -> bytes:
        """Reads a signature or a version, and checks that it is one of `wanted`."""
        found = self.take(len(wanted[0]))
        if found not in wanted:
            raise ValueError(f"got {found!r}, wanted {' or '.join(map(repr, wanted))}")
        return found


def _padded(size: int) -> int:
    return -(-size // 8) * 8


# ---- Objects -------------------------------------------------------------------------------------


@dataclass(eq=False)
class Dataset:
    """An array in a file.

    Attributes:
        shape: the shape in the file.
        attributes: its text attributes.
    """

    shape: tuple[int, ...]
    attributes: dict[str, str | list[str]]
    _source: _Source
    _messages: dict[int, bytes]

    def read(self) -> Array:
        """The values, in native byte order, maybe read-only; two opaque bytes as dtype "V2".

        Raises:
            ValueError: the file does not hold all values, or stores them in an unsupported way.
        """
        missing = {_DATATYPE, _LAYOUT} - self._messages.keys()
        if missing or _EXTERNAL_FILES in self._messages:
            raise ValueError("its bytes are in another file or object")
        dtype = _number_type(_Fields(self._messages[_DATATYPE]))
        size = int(np.prod(self.shape, dtype=object)) * dtype.itemsize
        fields = _Fields(self._messages[_LAYOUT])
        version = fields.uint(1)
        if version != 3:
            raise ValueError(f"its layout is of version {version}, wanted 3")
        layout = fields.uint(1)
        if layout == 2:
            array = self._read_chunks(fields, dtype, size)
        elif layout in (0, 1):
            array = np.frombuffer(self._read_block(fields, layout, size), dtype)
        else:
            raise ValueError("its layout is neither compact, contiguous nor chunked")
        return array.reshape(self.shape).astype(dtype.newbyteorder("="), copy=False)

    def _read_block(self, fields: _Fields, layout: int, size: int) -> bytes:
        if layout == 0:
            stored = fields.uint(2)
            data = fields.take(stored)
        else:
            address, stored = fields.uints(2)
            if address == _UNDEFINED or stored != size:
                stored = 0
            data = self._source.data(address, stored) if stored else b""
        if stored != size:
            raise ValueError(f"its {size} bytes are not in the file")
        return data

    def _read_chunks(self, fields: _Fields, dtype: np.dtype[np.generic], size: int) -> Array:
        rank = fields.uint(1) - 1
        root = fields.uint(8)
        *chunk, item = fields.uints(rank + 1, 4) if rank >= 0 else [0]
        if rank != len(self.shape) or rank == 0 or item != dtype.itemsize or 0 in chunk:
            raise ValueError("its chunks do not fit its shape")
        filters = _filters(self._messages.get(_FILTERS))
        chunks = [] if root == _UNDEFINED else list(_chunks(self._source, root, rank))
        chunk_size = int(np.prod(chunk, dtype=object)) * item
        stored = sum(count for _, count, _, _ in chunks)
        counts = [-(-extent // step) for extent, step in zip(self.shape, chunk)]
        corners = {tuple(corner) for corner, *_ in chunks}
        if (
            stored > self._source.size  # chunks do not share bytes
            or max(size, chunk_size) > largest_expansion(stored)
            or len(corners) != len(chunks)
            or len(chunks) != int(np.prod(counts, dtype=object))
        ):
            raise ValueError(f"its {size} bytes are not in the file")
        array = np.zeros(self.shape, dtype)
        for corner, count, mask, address in chunks:
            if any(at % step or at >= end for at, step, end in zip(corner, chunk, self.shape)):
                raise ValueError("a chunk lies outside of the shape")
            data = self._source.data(address, count)
            for position, (name, value) in reversed(list(enumerate(filters))):
                if not mask >> position & 1:
                    data = _undo(name, value, data, chunk_size)
            if len(data) != chunk_size:
                raise ValueError(f"a chunk has {len(data)} bytes, wanted {chunk_size}")
            place = tuple(slice(at, at + step) for at, step in zip(corner, chunk))
            inside = tuple(slice(0, end - at) for at, end in zip(corner, self.shape))
            array[place] = np.frombuffer(data, dtype).reshape(chunk)[inside]
        return array


def _number_type(fields: _Fields) -> np.dtype[np.generic]:
    """The dtype that a datatype message describes."""
    kind = fields.uint(1) & 15
    bits = fields.uint(3)
    size = fields.uint(4)
    order = "<>"[bits & 1]
    if kind == 5:  # opaque
        if size == 2:
            return np.dtype("V2")
    elif kind in (0, 1) and size in (1, 2, 4, 8) and not bits & 64:  # 64: VAX byte order
        offset, precision = fields.uints(2, 2)
        whole = offset == 0 and precision == 8 * size
        if kind == 0 and whole:
            return np.dtype(f"{order}{'i' if bits & 8 else 'u'}{size}")
        layouts = {
            (10, 5, 0, 10): f"{order}f2",
            (23, 8, 0, 23): f"{order}f4",
            (52, 11, 0, 52): f"{order}f8",
        }
        if kind == 1 and whole:
            # Position and size of the exponent, then of the mantissa.
            exponent, exponent_size, mantissa, mantissa_size = fields.take(4)
            name = layouts.get((exponent, exponent_size, mantissa, mantissa_size))
            if name and np.dtype(name).itemsize == size:
                return np.dtype(name)
    raise ValueError(f"its datatype, of class {kind} and {size} bytes, is not floating point")


def _filters(message: bytes | None) -> list[tuple[str, int]]:
    """The filters' names and first parameters, in the order of writing."""
    if message is None:
        return []
    fields = _Fields(message)
    version, count = fields.uints(2, 1)
    if version not in (1, 2):
        raise ValueError(f"its filters are of version {version}")
    if version == 1:
        fields.take(6)
    result = []
    for _ in range(count):
        number = fields.uint(2)
        name_size = fields.uint(2) if version == 1 or number >= 256 else 0
        _, values = fields.uints(2, 2)
        fields.take(_padded(name_size) if version == 1 else name_size)
        parameters = fields.uints(values, 4)
        if version == 1 and values % 2:
            fields.take(4)
        names = {1: "deflate", 2: "shuffle"}
        if number not in names:
            raise ValueError(f"its filter {number} is neither deflate (1) nor shuffle (2)")
        result.append((names[number], parameters[0] if parameters else 0))
    return result


def _undo(name: str, value: int, data: bytes, size: int) -> bytes:
    """Undoes a filter; the result has at most `size` bytes."""
    if name == "shuffle":
        whole = len(data) // value * value if value else 0
        planes = np.frombuffer(data[:whole], np.uint8).reshape(max(value, 1), -1)
        return planes.T.tobytes() + data[whole:]
    stream = zlib.decompressobj()
    try:
        result = stream.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"a chunk is damaged: {error}") from error
    if len(result) > size or not stream.eof:
        raise ValueError(f"a chunk does not end after {size} bytes")
    return result


def _chunks(
    source: _Source, address: int, rank: int, above: int = _DEEPEST_TREE
) -> Iterator[tuple[list[int], int, int, int]]:
    """The corner, stored bytes, mask of skipped filters and address of each chunk.

    They are read from a version 1 B-tree, whose levels count down from the root to the leaves.
    """
    level, used, fields = _tree_node(source, address, 1, above, 8 + 8 * (rank + 1))
    for _ in range(used):
        count, mask = fields.uints(2, 4)
        *corner, _ = fields.uints(rank + 1)
        child = fields.uint(8)
        if level:
            yield from _chunks(source, child, rank, level)
        else:
            yield corner, count, mask, child


def _tree_node(
    source: _Source, address: int, kind: int, above: int, key_size: int
) -> tuple[int, int, _Fields]:
    """The level, entry count and entries (key, address) of a version 1 B-tree node."""
    fields = source.structure(address, 24)
    fields.expect(b"TREE")
    found, level, used = fields.uint(1), fields.uint(1), fields.uint(2)
    if found != kind or level >= above:
        raise ValueError("a B-tree's node is of another kind or level")
    return level, used, source.structure(address + 24, used * (key_size + 8))


# ---- The file ------------------------------------------------------------------------------------


@dataclass(eq=False)
class File:
    """The objects of a file; paths have no leading slash, and the root's is "".

    Soft links and links to other files are ignored; an object with several names has the first.

    Attributes:
        datasets: the datasets, by path.
        groups: the groups' text attributes, by path.
    """

    datasets: dict[str, Dataset] = field(default_factory=dict)
    groups: dict[str, dict[str, str | list[str]]] = field(default_factory=dict)


def read(stream: BinaryIO) -> File:
    """The objects of the file; the values of a dataset are read when its `read` is called.

    Args:
        stream: seekable; it must stay open as long as datasets are read.

    Raises:
        ValueError: it is not an HDF5 file, is truncated, damaged, or has an unsupported feature.
    """
    source = _Source(stream)
    file = File()
    heaps = _GlobalHeaps(source)
    seen = set()
    waiting = [("", _root(source), 0)]
    while waiting:
        path, address, depth = waiting.pop()
        if address in seen:
            continue
        seen.add(address)
        if depth > _DEEPEST:
            raise ValueError(f"groups are nested more than {_DEEPEST} deep")
        messages = list(_messages(source, address))
        single = {kind: body for kind, flags, body in messages if not flags & _SHARED}
        attributes = _attributes(source, heaps, messages)
        if _LAYOUT in single:
            shape = _shape(_Fields(single.get(_DATASPACE, b"")))
            file.datasets[path] = Dataset(shape, attributes, source, single)
        elif single.keys() & {_SYMBOL_TABLE, _LINK_INFO, _LINK} or depth == 0:
            file.groups[path] = attributes
            children = list(_links(source, messages))
            for name, child in reversed(children):
                source.charge(len(path) + len(name))
                waiting.append((f"{path}/{name}" if path else name, child, depth + 1))
    return file


def _root(source: _Source) -> int:
    """The address of the root group's header, from the superblock."""
    fields = source.structure(0, min(source.size, 96))
    fields.expect(SIGNATURE)
    version = fields.uint(1)
    if version > 3:
        raise ValueError(f"its superblock is of version {version}, wanted 0 to 3")
    fields.take(4 if version < 2 else 0)
    sizes = fields.uints(2, 1)
    if sizes != [8, 8]:
        raise ValueError(f"its addresses and lengths have {sizes} bytes, wanted 8 and 8")
    if version < 2:
        fields.take(9 + 4 * version)
        base, _, end, _, _, root = fields.uints(6)
    else:
        fields.take(1)
        base, _, end, root = fields.uints(4)
    if base:
        raise ValueError("it does not begin with its superblock")
    if end > source.size:
        raise ValueError(f"it is truncated: {source.size} bytes are left of {end}")
    return root


def _messages(source: _Source, address: int) -> Iterator[tuple[int, int, bytes]]:
    """The type, flags and content of each message of an object's header."""
    prefix = source.structure(address, 16)
    old = prefix.take(4) != b"OHDR"
    if old:
        prefix = source.structure(address, 16)
        prefix.expect(b"\x01")
        prefix.take(7)
        blocks = [(address + 16, prefix.uint(4))]
        ordered = False
    else:
        prefix.expect(b"\x02")
        flags = prefix.uint(1)
        ordered = bool(flags & 4)
        start = address + 6 + (16 if flags & 32 else 0) + (4 if flags & 16 else 0)
        size = 1 << (flags & 3)
        blocks = [(start + size, source.structure(start, size).uint(size))]
    first = True
    while blocks:
        fields = source.structure(*blocks.pop(0))
        if not old and not first:
            fields.expect(b"OCHK")
        # A later block ends with its checksum of four bytes; the first block's comes after it.
        end = 0 if old or first else 4
        first = False
        header = 8 if old else 6 if ordered else 4
        while fields.left - end >= header:
            kind = fields.uint(2 if old else 1)
            size, flags = fields.uint(2), fields.uint(1)
            fields.take(header - (5 if old else 4))
            body = fields.take(size)
            if kind == _CONTINUATION:
                place, length = _Fields(body).uints(2)
                blocks.append((place, length))
            else:
                yield kind, flags, body


def _shape(fields: _Fields) -> tuple[int, ...]:
    """The shape that a dataspace message describes."""
    version, rank = fields.uints(2, 1)
    if version not in (1, 2) or rank > _LARGEST_RANK:
        raise ValueError(f"a dataspace is of version {version} and rank {rank}")
    fields.take(6 if version == 1 else 2)
    shape = tuple(fields.uints(rank))
    if any(extent >= 2**60 for extent in shape):
        raise ValueError(f"a dataspace claims the shape {shape}")
    return shape


# ---- Attributes ----------------------------------------------------------------------------------


def _attributes(
    source: _Source, heaps: _GlobalHeaps, messages: list[tuple[int, int, bytes]]
) -> dict[str, str | list[str]]:
    bodies = [body for kind, flags, body in messages if kind == _ATTRIBUTE and not flags & _SHARED]
    for kind, _, body in messages:
        if kind == _ATTRIBUTE_INFO:
            bodies += _dense(source, body, 8, 2)
    result = {}
    for body in bodies:
        name, value = _attribute(source, heaps, _Fields(body))
        if value is not None:
            result[name] = value
    return result


def _attribute(
    source: _Source, heaps: _GlobalHeaps, fields: _Fields
) -> tuple[str, str | list[str] | None]:
    """An attribute's name and text; None for an attribute of another type."""
    version, flags = fields.uints(2, 1)
    if version not in (1, 2, 3):
        raise ValueError(f"an attribute is of version {version}")
    sizes = fields.uints(3, 2)
    fields.take(1 if version == 3 else 0)
    name, datatype, dataspace = (
        fields.take(_padded(size) if version == 1 else size) for size in sizes
    )
    text = name.partition(b"\0")[0].decode("utf-8", "replace")
    if version > 1 and flags & 3:  # a type or a shape that is stored elsewhere
        return text, None
    if dataspace[:1] == b"\2" and dataspace[3:4] == b"\2":  # no value at all
        return text, None
    kind = _Fields(datatype)
    class_number, bits, size = kind.uint(1) & 15, kind.uint(3), kind.uint(4)
    shape = _shape(_Fields(dataspace))
    count = int(np.prod(shape, dtype=object))
    if class_number == 3 and size:
        data = fields.take(count * size)
        values = [data[at : at + size] for at in range(0, len(data), size)]
    elif class_number == 9 and bits & 15 == 1:
        entries = _Fields(fields.take(count * 16))
        values = [heaps.text(*(entries.uint(n) for n in (4, 8, 4))) for _ in range(count)]
    else:
        return text, None
    source.charge(sum(map(len, values)))
    texts = [value.rstrip(b"\0").decode("utf-8", "replace") for value in values]
    return text, texts if shape else texts[0]


class _GlobalHeaps:
    """Collections of texts of variable length, each parsed once."""

    def __init__(self, source: _Source) -> None:
        self._source = source
        self._collections: dict[int, dict[int, bytes]] = {}

    def text(self, length: int, address: int, index: int) -> bytes:
        if not length:
            return b""
        if address not in self._collections:
            self._collections[address] = self._read(address)
        found = self._collections[address].get(index, b"")
        if len(found) < length:
            raise ValueError("a text is not in its heap")
        return found[:length]

    def _read(self, address: int) -> dict[int, bytes]:
        head = self._source.structure(address, 16)
        head.expect(b"GCOL\x01")
        head.take(3)
        fields = self._source.structure(address + 16, max(head.uint(8) - 16, 0))
        objects = {}
        while fields.left >= 16:
            index = fields.uint(2)
            fields.take(6)
            size = fields.uint(8)
            if index == 0:  # the free space, which comes last
                break
            objects[index] = fields.take(size)
            fields.take(min(_padded(size) - size, fields.left))
        return objects


# ---- Groups --------------------------------------------------------------------------------------


def _links(source: _Source, messages: list[tuple[int, int, bytes]]) -> Iterator[tuple[str, int]]:
    """The name and address of each object in a group, for both kinds of groups."""
    for kind, _, body in messages:
        if kind == _SYMBOL_TABLE:
            tree, heap = _Fields(body).uints(2)
            yield from _symbols(source, tree, _local_heap(source, heap))
        elif kind == _LINK:
            yield from _link(_Fields(body))
        elif kind == _LINK_INFO:
            for link in _dense(source, body, 5, 8):
                yield from _link(_Fields(link))


def _local_heap(source: _Source, address: int) -> bytes:
    fields = source.structure(address, 32)
    fields.expect(b"HEAP\0")
    fields.take(3)
    size, _, data = fields.uints(3)
    source.charge(size)
    return source.data(data, size)


def _symbols(
    source: _Source, address: int, names: bytes, above: int = _DEEPEST_TREE
) -> Iterator[tuple[str, int]]:
    """The name and address of each object in the B-tree of a group's symbol table."""
    level, used, fields = _tree_node(source, address, 0, above, 8)
    for _ in range(used):
        _, child = fields.uints(2)
        if level:
            yield from _symbols(source, child, names, level)
            continue
        head = source.structure(child, 8)
        head.expect(b"SNOD\x01")
        head.take(1)
        count = head.uint(2)
        entries = source.structure(child + 8, count * 40)
        for _ in range(count):
            offset, target = entries.uints(2)
            cache = entries.uint(4)
            entries.take(20)
            end = names.find(b"\0", offset)
            if end < 0:
                raise ValueError("a name is not in its heap")
            source.charge(end - offset)
            if cache != 2:  # a symbolic link
                yield names[offset:end].decode("utf-8", "replace"), target


def _link(fields: _Fields) -> Iterator[tuple[str, int]]:
    """The name and the address in a link message; nothing if the link is soft or external."""
    fields.expect(b"\x01")
    flags = fields.uint(1)
    kind = fields.uint(1) if flags & 8 else 0
    fields.take((8 if flags & 4 else 0) + (1 if flags & 16 else 0))
    name = fields.take(fields.uint(1 << (flags & 3)))
    if kind == 0:
        yield name.decode("utf-8", "replace"), fields.uint(8)


# ---- Many links or attributes: a fractal heap and a version 2 B-tree -----------------------------


def _dense(source: _Source, body: bytes, kind: int, order_size: int) -> Iterator[bytes]:
    """The messages in the heap that a link info or attribute info message refers to."""
    fields = _Fields(body)
    fields.expect(b"\0")
    fields.take(order_size if fields.uint(1) & 1 else 0)
    heap_address, tree = fields.uints(2)
    if heap_address == _UNDEFINED:
        return
    heap = _FractalHeap(source, heap_address)
    for record in _records(source, tree, kind):
        # A link's record begins with the hash of its name.
        yield heap.object(record[4:] if kind == 5 else record)


def _bytes_for(limit: int) -> int:
    return (max(limit.bit_length(), 1) - 1) // 8 + 1


def _records(source: _Source, address: int, kind: int) -> Iterator[bytes]:
    """All records of a version 2 B-tree."""
    fields = source.structure(address, 34)
    fields.expect(b"BTHD\0")
    if fields.uint(1) != kind:
        raise ValueError("a B-tree is of another kind")
    node_size, record_size, depth = fields.uint(4), fields.uint(2), fields.uint(2)
    fields.take(2)
    root, count = fields.uint(8), fields.uint(2)
    if root == _UNDEFINED:
        return
    if not record_size or node_size <= 10 or depth > _DEEPEST_TREE:
        raise ValueError("a B-tree's sizes are impossible")
    # The widths of the counts in a pointer follow from how many records the nodes below may hold.
    most = (node_size - 10) // record_size
    width = _bytes_for(most)
    totals, total = [0], most
    for level in range(1, depth + 1):
        totals.append(_bytes_for(total) if level > 1 else 0)
        here = (node_size - 10) // (record_size + 8 + width + totals[level])
        total = (here + 1) * total + here

    nodes = [(root, count, depth)]
    while nodes:
        place, count, level = nodes.pop()
        pointers = (count + 1) * (8 + width + totals[level]) if level else 0
        node = source.structure(place, 6 + count * record_size + pointers)
        node.expect(b"BTIN\0" if level else b"BTLF\0")
        node.take(1)
        for _ in range(count):
            yield node.take(record_size)
        for _ in range(count + 1 if level else 0):
            child, below = node.uint(8), node.uint(width)
            node.take(totals[level])
            nodes.append((child, below, level - 1))


class _FractalHeap:
    """Objects by their identifiers, restricted to those within the heap's table of blocks."""

    def __init__(self, source: _Source, address: int) -> None:
        self._source = source
        fields = source.structure(address, 142)
        fields.expect(b"FRHP\0")
        _, filters = fields.uints(2, 2)
        fields.take(1)
        largest_object = fields.uint(4)
        fields.take(96)
        self._width = fields.uint(2)
        self._start, largest = fields.uints(2)
        bits = fields.uint(2)
        fields.take(2)
        self._root, self._rows = fields.uint(8), fields.uint(2)
        powers = all(size and size & (size - 1) == 0 for size in (self._start, largest))
        if filters or not powers or not 0 < self._width <= 1024 or bits > 64 or self._rows > 64:
            raise ValueError("a fractal heap's sizes are impossible, or it is compressed")
        self._offset_size = -(-bits // 8)
        self._length_size = _bytes_for(min(largest, largest_object))
        self._direct_rows = largest.bit_length() - self._start.bit_length() + 2

    def object(self, identifier: bytes) -> bytes:
        fields = _Fields(identifier)
        if fields.uint(1) >> 4:
            raise ValueError("an object of a fractal heap is not of the kind 'managed'")
        offset, length = fields.uint(self._offset_size), fields.uint(self._length_size)
        return self._find(self._root, self._rows, offset, length)

    def _find(self, block: int, rows: int, offset: int, length: int) -> bytes:
        """The object at an offset in a block; without rows it is direct: it holds the bytes."""
        if rows == 0:
            return self._source.structure(block + offset, length).take(length)
        for row in range(rows):
            size = self._start << max(row - 1, 0)
            if offset >= size * self._width:
                offset -= size * self._width
                continue
            column, offset = divmod(offset, size)
            entry = 13 + self._offset_size + 8 * (row * self._width + column)
            child = self._source.structure(block + entry, 8).uint(8)
            inner = 0
            if row >= self._direct_rows:
                inner = size.bit_length() - (self._start * self._width).bit_length() + 1
                if not 0 < inner < rows:
                    break
            return self._find(child, inner, offset, length)
        raise ValueError("an object is outside of its fractal heap")
