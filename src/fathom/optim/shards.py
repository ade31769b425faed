"""Who has which part of what: a tensor's part as a checkpoint sees it, and how parts fall to ranks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Shard(Tensor):
    """Consecutive slices of a larger tensor along its first axis, as a checkpoint sees them; a view of `local`."""

    local: Tensor
    first: int
    whole: torch.Size

    @staticmethod
    def of(local: Tensor, first: int, length: int) -> Shard:
        """`local` is slices [first, first + len(local)) of `length`."""
        made = local.detach().as_subclass(Shard)
        made.local, made.first, made.whole = local.detach(), first, torch.Size([length, *local.shape[1:]])
        return made

    def like(self, local: Tensor) -> Shard:
        """The same part of the same whole, with other numbers."""
        return Shard.of(local, self.first, self.whole[0])

    def size(self, *_: Any) -> torch.Size:  # type: ignore[override]
        return self.whole

    # What torch.distributed.checkpoint asks of a tensor that is a part (torch/distributed/_checkpointable.py).

    def __create_chunk_list__(self) -> list[Any]:
        from torch.distributed.checkpoint.metadata import ChunkStorageMetadata

        return [ChunkStorageMetadata(self._offsets, self.local.shape)] if self.local.numel() else []

    def __create_write_items__(self, name: str, _: Any) -> list[Any]:
        from torch.distributed.checkpoint.metadata import MetadataIndex, TensorProperties
        from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

        index, properties = MetadataIndex(name, self._offsets), TensorProperties.create_from_tensor(self.local)
        parts = [TensorWriteData(chunk, properties, self.whole) for chunk in self.__create_chunk_list__()]
        return [WriteItem(index, WriteItemType.SHARD, tensor_data=part) for part in parts]

    def __get_tensor_shard__(self, _: Any) -> Tensor:
        return self.local

    @property
    def _offsets(self) -> torch.Size:
        return torch.Size([self.first] + [0] * (self.local.dim() - 1))


@dataclass(frozen=True)
class Mesh:
    """Who holds which part: ranks of one `group` split a model among them; `replicas` such groups hold the same."""

    rank: int
    world: int
    """Of the group."""
    group: Any = None
    """The process group; None for that of all ranks."""
    replicas: int = 1

    def part(self, length: int, rank: int | None = None) -> slice:
        """Which of so many things in a row are a rank's (default this one's): equal parts, the last ones short."""
        each, rank = self.each(length), self.rank if rank is None else rank
        return slice(min(rank * each, length), min((rank + 1) * each, length))

    def each(self, length: int) -> int:
        """The most that one rank has of so many things."""
        return -(-length // self.world)


def local(tensor: Tensor) -> Tensor:
    """What of it is here."""
    if isinstance(tensor, Shard):
        return tensor.local
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def shards_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A model's state, the parts that `fully_shard` made of its weights as `Shard`."""
    return {name: as_shard(weight) if hasattr(weight, "to_local") else weight for name, weight in state.items()}


def as_shard(weight: Tensor) -> Shard:
    """This rank's part of a weight that `fully_shard` has split by rows."""
    chunks = weight.__create_chunk_list__()  # type: ignore[attr-defined]
    return Shard.of(local(weight.detach()), chunks[0].offsets[0] if chunks else 0, weight.shape[0])
