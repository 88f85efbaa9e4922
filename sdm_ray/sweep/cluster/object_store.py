"""Shares cache entries (data, encoders, floors) between the nodes of a cluster through Ray's object store."""

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
"""Timeout of a request, after which a node builds the entry itself."""


class Index:
    """Ray actor that owns the shared entries, so that they outlive the processes that created them."""

    def __init__(self) -> None:
        self._entries: dict[str, Any] = {}

    def holds(self, name: str) -> bool:
        """Whether an entry exists."""
        return name in self._entries

    def put(self, name: str, files: Files) -> None:
        """Store an entry, unless the name exists already."""
        if name not in self._entries:
            self._entries[name] = ray.put(files)

    def get(self, name: str) -> list[Any]:
        """Object reference of an entry, in a list so that Ray does not resolve it; empty if there is none."""
        return [self._entries[name]] if name in self._entries else []


@dataclass(frozen=True)
class ObjectStore:
    """Client of the entries in Ray's object store. Ray errors are logged, and the node builds its own entry."""

    name: str
    """Name of the `Index` actor; stores with the same name compare equal."""
    index: Any = field(compare=False, repr=False)
    """Handle of the `Index` actor."""

    def has(self, name: str) -> bool:
        """Whether an entry exists; also true if the index does not answer, so that nothing is sent to it."""
        try:
            return bool(ray.get(self.index.holds.remote(name), timeout=SECONDS))
        except RayError as error:
            self._failed(name, error)
            return True

    def take(self, name: str) -> Files | None:
        """Fetch an entry, from this node's store or another's; None if there is none or Ray fails."""
        try:
            found = ray.get(self.index.get.remote(name), timeout=SECONDS)
            files: Files | None = ray.get(found[0], timeout=SECONDS) if found else None
        except RayError as error:
            self._failed(name, error)
            return None
        return files

    def give(self, name: str, files: Files) -> None:
        """Send an entry to the index."""
        try:
            ray.get(self.index.put.remote(name, files), timeout=SECONDS)
        except RayError as error:
            self._failed(name, error)

    def _failed(self, name: str, error: RayError) -> None:
        log.warning("cache entry %s is not shared between nodes: %s", name, " ".join(str(error).split())[:300])


@contextmanager
def shared_caches(name: str) -> Iterator[str]:
    """Run an index on the driver's node for the duration of the block; yields its name, for `join`."""
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
    """Connect to the index of a name; None if the name is None or the index no longer exists."""
    if name is None:
        return None
    try:
        return ObjectStore(name, ray.get_actor(name))
    except ValueError as error:  # it died with the driver's node; this process will end too
        log.warning("caches are not shared between nodes: %s", error)
        return None
