"""Shards of a training: parts of population and batch with a random stream of their own.

What a training computes depends on the number of shards and never on who computes them. A process owns some
shards; gradients and statistics of all are gathered and summed in the order of the shards, so every process
takes the same step, and the sum is the same to the last bit however shards are distributed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import RankError


class Peers(Protocol):
    """The processes that train together; every one calls the same methods in the same order.

    Attributes
    ----------
    rank, count : the number of this process, from zero, and how many there are
    """

    @property
    def rank(self) -> int: ...

    @property
    def count(self) -> int: ...

    def gather(self, own: Tensor) -> list[Tensor]:
        """The tensors of all, of one shape, in order of rank."""
        ...

    def collect(self, own: bytes) -> list[bytes]:
        """The bytes of all in order of rank, at rank 0; nothing elsewhere."""
        ...

    def tell(self, content: bytes) -> bytes:
        """The bytes that rank 0 has; those of others are ignored."""
        ...

    def compare(self, facts: Mapping[str, str]) -> None:
        """Refuse processes that do not state the same facts.

        Raises
        ------
        RankError
            One does not; it and the fact are named.
        """
        ...


@dataclass(frozen=True)
class Alone:
    """A process that trains by itself."""

    rank: int = 0
    count: int = 1

    def gather(self, own: Tensor) -> list[Tensor]:
        return [own]

    def collect(self, own: bytes) -> list[bytes]:
        return [own]

    def tell(self, content: bytes) -> bytes:
        return content

    def compare(self, facts: Mapping[str, str]) -> None:
        pass


@dataclass(frozen=True)
class Shards:
    """``count`` shards, of which this process owns some."""

    count: int
    peers: Peers = field(default_factory=Alone)

    @property
    def owned(self) -> range:
        return self._of(self.peers.rank)

    def _of(self, rank: int) -> range:
        """The shards of a rank, about equally many each."""
        ranks = self.peers.count
        return range(rank * self.count // ranks, (rank + 1) * self.count // ranks)

    def prefix(self, shard: int) -> str:
        """What stands before the names of a shard's entries in a state; nothing where there is but one."""
        return "" if self.count == 1 else f"shard{shard}/"

    @property
    def foreign(self) -> tuple[str, ...]:
        """The prefixes of what other processes own."""
        return tuple(self.prefix(shard) for shard in range(self.count) if shard not in self.owned)

    def seed(self, seed: int, shard: int) -> int:
        """The seed of a shard's stream."""
        if self.count == 1:
            return seed
        digest = hashlib.sha256(f"{seed}/{shard}/{self.count}".encode()).digest()
        return int.from_bytes(digest[:4], "big")

    def gather(self, own: Sequence[Tensor]) -> list[Tensor]:
        """The tensors of all shards, of one shape, in their order; ``own`` are those of the owned ones."""
        if self.peers.count == 1:
            return list(own)
        most = -(-self.count // self.peers.count)
        rows = torch.stack([*own, *(torch.zeros_like(own[0]) for _ in range(most - len(own)))])
        found = self.peers.gather(rows)
        return [row for rank, rows in enumerate(found) for row in rows[: len(self._of(rank))]]

    def total(self, own: Sequence[Tensor]) -> Tensor:
        """The sum over all shards, in their order."""
        return reduce(torch.add, self.gather(own))

    def any(self, own: bool) -> bool:
        """Whether it is so in any process."""
        return any(bool(each) for each in self.peers.gather(torch.tensor([own])))

    def collected(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """A state with the entries of all shards, at rank 0; elsewhere the state as it is."""
        if self.peers.count == 1:
            return dict(state)
        mine = tuple(self.prefix(shard) for shard in self.owned)
        parts = self.peers.collect(pack({k: v for k, v in state.items() if k.startswith(mine)}))
        merged = dict(state)
        for part in parts:
            merged |= unpack(part)
        return merged

    def require_same(self, state: Mapping[str, Any]) -> None:
        """Refuse to go on where processes no longer hold the same of what they share.

        Raises
        ------
        RankError
            They do not; the ranks are named.
        """
        if self.peers.count == 1:
            return
        digest = hashlib.sha256()
        for key in sorted(key for key in state if not key.startswith("shard")):
            value = state[key]
            if isinstance(value, Tensor):
                value = (
                    value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
                )
            digest.update(f"{key} {value!r}".encode())
        mine = torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
        found = self.peers.gather(mine)
        others = [rank for rank, each in enumerate(found) if not torch.equal(each, found[0])]
        if others:
            raise RankError(
                f"the networks of rank {', '.join(map(str, others))} are no longer those of rank 0: other "
                "arithmetic or a damaged memory there; the last checkpoint is kept"
            )


def pack(values: Mapping[str, Any]) -> bytes:
    """Tensors, and what JSON can hold, by name, as bytes."""
    import safetensors.torch

    tensors = {
        key: value.detach().cpu().clone().contiguous()
        for key, value in values.items()
        if isinstance(value, Tensor)
    }
    rest = json.dumps({key: value for key, value in values.items() if key not in tensors})
    tensors["/"] = torch.frombuffer(bytearray(rest.encode()), dtype=torch.uint8)
    return safetensors.torch.save(tensors)


def unpack(content: bytes) -> dict[str, Any]:
    """What :func:`pack` made bytes of."""
    import safetensors.torch

    values: dict[str, Any] = safetensors.torch.load(content)
    rest = json.loads(values.pop("/").numpy().tobytes())
    return {**values, **rest}
