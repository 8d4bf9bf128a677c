"""Writes the snapshots beside this file, with the structure of `torch.cuda.memory._dump_snapshot`."""

import pathlib
import pickle

frames = [{"filename": "model.py", "line": 7, "name": "forward"}]


def entry(action, addr, size, stream=0, **more):
    return {"action": action, "addr": addr, "size": size, "stream": stream, "frames": frames, **more}


first = [
    entry("segment_alloc", 0x7F0000000000, 2097152),
    entry("alloc", 0x7F0000000000, 300),
    entry("alloc", 0x7F0000000200, 1 << 40, stream=94000000000000, time_us=1700000000000000),
    entry("free_requested", 0x7F0000000000, 300),
    entry("free_completed", 0x7F0000000000, 300),
    entry("free_completed", 0x7F00000FFF00, 512),
    {"action": "oom", "device_free": 123, "size": 1, "stream": 0, "frames": []},
    {"action": "snapshot", "addr": 0, "size": 0, "stream": 0, "frames": []},
]
second = [entry("alloc", 0x7F0000000000, 0), entry("free_completed", 0x7F0000000200, 5)]
segment = {"address": 0x7F0000000000, "total_size": 2097152, "stream": 0, "segment_type": "small", "blocks": []}
settings = {"expandable_segments": False, "threshold": 0.5, "none": None, "sizes": (1, 2, 3, 4), "one": (1,)}
snapshot = {"segments": [segment], "device_traces": [first, second, []], "allocator_settings": settings}
here = pathlib.Path(__file__).parent
for protocol in (2, 4):
    (here / f"snapshot-{protocol}.pickle").write_bytes(pickle.dumps(snapshot, protocol=protocol))
