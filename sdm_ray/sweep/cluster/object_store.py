"""Cache entries shared by the nodes of a cluster through Ray's object store: data, encoders and floors, once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from sdm_ray.core.cache import Files, SharedCache

log = logging.getLogger(__name__)

SECONDS = 300.0
"""A node waits this long for an entry before it builds its own."""


class Index:
    """Knows which entries there are, and owns them: they outlive the processes that made them."""

    def __init__(self) -> None:
        self._entries: dict[str, Any] = {}

    def holds(self, name: str) -> bool:
        """Whether there is an entry."""
        return name in self._entries

    def put(self, name: str, files: Files) -> None:
        """Keep an entry; the first one of its name stays."""
        if name not in self._entries:
            self._entries[name] = ray.put(files)

    def get(self, name: str) -> list[Any]:
        """The reference of an entry, in a list, so that Ray does not send the entry itself."""
        return [self._entries[name]] if name in self._entries else []


@dataclass(frozen=True)
class ObjectStore:
    """Entries in Ray's object store. Whatever fails there is logged: the node then builds its own."""

    name: str
    """Of the actor `Index`; stores with the same one are equal."""
    index: Any = field(compare=False, repr=False)
    """Its handle."""

    def has(self, name: str) -> bool:
        """Whether there is an entry; an index that does not answer is offered nothing."""
        try:
            return bool(ray.get(self.index.holds.remote(name), timeout=SECONDS))
        except RayError as error:
            self._failed(name, error)
            return True

    def take(self, name: str) -> Files | None:
        """An entry, from the store of this node or another."""
        try:
            found = ray.get(self.index.get.remote(name), timeout=SECONDS)
            files: Files | None = ray.get(found[0], timeout=SECONDS) if found else None
        except RayError as error:
            self._failed(name, error)
            return None
        return files

    def give(self, name: str, files: Files) -> None:
        """Hand an entry to the index."""
        try:
            ray.get(self.index.put.remote(name, files), timeout=SECONDS)
        except RayError as error:
            self._failed(name, error)

    def _failed(self, name: str, error: RayError) -> None:
        log.warning("cache entry %s is not shared between nodes: %s", name, " ".join(str(error).split())[:300])


@contextmanager
def shared_caches(name: str) -> Iterator[str]:
    """Run an index for the time of the block, on the driver's node; gives its name, for `join`."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    index: Any = ray.remote(num_cpus=0)(Index)
    actor = index.options(name=name, scheduling_strategy=here).remote()
    try:
        yield name
    finally:
        with suppress(RayError):
            ray.kill(actor)


def join(name: str | None) -> SharedCache | None:
    """The entries that the index of that name knows; None without a name, and where the index is gone."""
    if name is None:
        return None
    try:
        return ObjectStore(name, ray.get_actor(name))
    except ValueError as error:  # it died with the driver's node, and so will this process
        log.warning("caches are not shared between nodes: %s", error)
        return None
