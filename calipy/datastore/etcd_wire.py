"""Our values as etcd's messages, and back."""

from __future__ import annotations

from calipy.datastore.etcdpb import kv_pb2
from calipy.datastore.store import Event, KeyValue


def raw(key: str) -> bytes:
    """A key's bytes. Keys that are not UTF-8, which Calico never writes, carry their bytes as surrogates."""
    return key.encode(errors="surrogateescape")


def key_range(prefix: str) -> tuple[bytes, bytes]:
    """The half-open range of all keys that start with ``prefix``; "" means every key."""
    start = raw(prefix)
    stem = start.rstrip(b"\xff")
    if not stem:
        return start or b"\0", b"\0"
    return start, stem[:-1] + bytes([stem[-1] + 1])


def key_value(kv: kv_pb2.KeyValue) -> KeyValue:
    """A key as stored."""
    return KeyValue(
        kv.key.decode(errors="surrogateescape"), kv.value, kv.mod_revision, kv.create_revision, kv.version, kv.lease
    )


def event(message: kv_pb2.Event) -> Event:
    """A change. etcd leaves the previous value out for a new key and for one whose history is compacted."""
    kv = key_value(message.kv)
    prev = key_value(message.prev_kv) if message.HasField("prev_kv") else None
    if message.type == kv_pb2.Event.PUT:
        return Event("put", kv.key, kv.mod_revision, kv, prev)
    return Event("delete", kv.key, kv.mod_revision, None, prev)
