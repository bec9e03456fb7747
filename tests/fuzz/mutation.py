"""A small fuzzer: mutates bytes, repeatably."""

from collections.abc import Sequence
from random import Random

# Lengths and tags on the wire are varints; these sit at the edges of their sizes and of the types they stand for.
_EDGES = (
    *(bytes([n]) for n in (0x00, 0x01, 0x7F, 0x80, 0xFF, 0x0A, 0x12, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x0B, 0x0C)),
    *(bytes.fromhex(h) for h in ("8001", "ff01", "ff7f", "808001", "ffffffff07", "ffffffff0f", "8080808010")),
    *(bytes.fromhex(h) for h in ("ffffffffffffffff7f", "ffffffffffffffffff01", "80808080808080808001")),
    *(bytes.fromhex(h) for h in ("ffffff7f", "0000c07f", "0000807f")),
)
LONGEST = 4096


def mutated(chance: Random, corpus: Sequence[bytes]) -> bytes:
    """One of ``corpus`` with one to four changes; at most :data:`LONGEST` bytes."""
    data = bytearray(chance.choice(corpus))
    for _ in range(1 + int(chance.random() * 4)):
        _change(chance, data, corpus)
    return bytes(data[:LONGEST])


def _change(chance: Random, data: bytearray, corpus: Sequence[bytes]) -> None:
    size = len(data)
    at = int(chance.random() * (size + 1))
    match int(chance.random() * 8):
        case 0 if at < size:
            data[at] ^= 1 << int(chance.random() * 8)
        case 1 if at < size:
            data[at] = int(chance.random() * 256)
        case 2:
            data[at:at] = chance.choice(_EDGES)
        case 3 if at < size:
            edge = chance.choice(_EDGES)
            data[at : at + len(edge)] = edge
        case 4:
            del data[at : at + 1 + int(chance.random() * 16)]
        case 5:
            data[at:at] = data[at : at + 1 + int(chance.random() * 64)]
        case 6:
            other = chance.choice(corpus)
            data[at:] = other[int(chance.random() * (len(other) + 1)) :]
        case _:
            data[at:at] = chance.randbytes(1 + int(chance.random() * 8))
