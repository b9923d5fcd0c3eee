"""The bytes of a quantized folder before it is written, to the last one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# In the order in which safetensors lays tensors down, and the names that its header has for the types.
TYPES = {
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_ORDER = {name: place for place, name in enumerate(TYPES.values())}
_BYTES = {name: kind.itemsize for kind, name in TYPES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor as a file's header has it: its name, its type there, and its shape."""

    name: str
    kind: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Stored:
        """The record of a tensor; ValueError for a type that no scheme stores."""
        if tensor.dtype not in TYPES:
            raise ValueError(f"{name} is {tensor.dtype}; {', '.join(map(str, TYPES))} can be stored")
        return cls(name, TYPES[tensor.dtype], tuple(tensor.shape))

    @property
    def bytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * _BYTES[self.kind]

    def entry(self, begin: int) -> str:
        """What the header says of it when its data begin there."""
        shape = ",".join(map(str, self.shape))
        return (
            f'"{self.name}":{{"dtype":"{self.kind}","shape":[{shape}],"data_offsets":[{begin},{begin + self.bytes}]}}'
        )


def safetensors_bytes(tensors: Iterable[Stored]) -> int:
    """The length of a safetensors file: 8 bytes, the header filled up to a multiple of 8, and the data."""
    begin, entries = 0, []
    for tensor in sorted(tensors, key=lambda tensor: (_ORDER[tensor.kind], tensor.name)):
        entries.append(tensor.entry(begin))
        begin += tensor.bytes
    header = len(",".join(entries)) + 2
    return 8 + header + -header % 8 + begin


def most_bytes(tensors: Iterable[Stored], room: int) -> int:
    """The most that some tensors can add to a safetensors file of at most `room` bytes of data."""
    return sum(len(tensor.entry(room)) + 1 + tensor.bytes for tensor in tensors)


def json_bytes(record: Mapping) -> int:
    """The length of a record as the folder's JSON files have it."""
    return len(json_text(record).encode())


def json_text(record: Mapping) -> str:
    """A record as the folder's JSON files have it."""
    return json.dumps(record, indent=1) + "\n"
