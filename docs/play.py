"""Walks into a world: pip install websockets, then python3 docs/play.py "a snowy forest at night".

Starts a session, holds W, jumps, makes it rain, prints what comes, and writes the last frame to frame.jpg.
"""
import json
import struct
import sys
import urllib.request

from websockets.sync.client import connect

HOST = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:8420"
HEADER = struct.Struct("<4sHHQQIHHII")  # see gamegend-protocol(7), STREAM


def call(method, path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{HOST}{path}", data, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read() or b"null")


prompt = sys.argv[1] if len(sys.argv) > 1 else "a snowy forest at night"
world = call("POST", "/api/v1/generate", {"prompt": prompt, "interactive": True})
controls = [
    {"keys": ["W"]},
    {"keys": ["W"], "taps": ["SPACE"]},
    {"weather": "rain"},
    {"keys": []},
]
with connect(f"ws://{HOST}{world['links']['stream']}") as stream:
    frames, sent = 0, 0
    while sent < len(controls) or frames < 12 * len(controls):
        message = stream.recv(timeout=60)
        if isinstance(message, str):
            print("message:", json.loads(message)["type"])
            continue
        magic, version, form, tick, time_us, seq, width, height, size, flags = HEADER.unpack_from(message)
        assert magic == b"GGF1" and version == 1 and form == 1
        jpeg = message[HEADER.size:HEADER.size + size]
        frames += 1
        if frames >= 12 * sent and sent < len(controls):
            sent += 1
            stream.send(json.dumps({"type": "control", "seq": sent, **controls[sent - 1]}))
        if frames % 12 == 0:
            print(f"tick {tick}: {width}x{height}, {size} bytes, reflects control {seq}")
with open("frame.jpg", "wb") as file:
    file.write(jpeg)
call("DELETE", f"/api/v1/sessions/{world['id']}")
print("frame.jpg is the last of", frames, "frames")
