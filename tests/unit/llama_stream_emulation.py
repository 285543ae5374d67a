#!/usr/bin/env python3
"""An emulation of llama-server's stream, for the tests of the programs that pass it on.

It takes llama-server's arguments, answers /health, and streams the seven pieces of `PIECES`, then a stop; fewer where
max_tokens says so. What it was asked stands in the file `<model>.asked`, a JSON line each. A prompt "die" ends it.
"""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PIECES = ["Hello", " café", " a/b", ' "q"', "\n", " done", "."]
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=False))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status":"ok"}')

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with Path(arguments["--model"] + ".asked").open("a") as file:
            file.write(json.dumps(body) + "\n")
        if body["messages"][-1]["content"] == "die":
            os._exit(3)
        pieces = PIECES[: body["max_tokens"]]
        reason = "stop" if body["max_tokens"] > len(PIECES) else "length"
        timings = {"prompt_n": 3, "prompt_ms": 2.0, "predicted_n": len(pieces), "predicted_ms": 10.0}
        self.send_response(200)
        self.end_headers()
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": "".join(pieces)}, "finish_reason": reason}
            self.wfile.write(json.dumps({"choices": [choice], "timings": timings}).encode())
            return
        for piece in pieces:
            self.send({"choices": [{"delta": {"content": piece}, "finish_reason": None}]})
        self.send({"choices": [{"delta": {}, "finish_reason": reason}], "timings": timings})
        self.wfile.write(b"data: [DONE]\n\n")

    def send(self, chunk: object) -> None:
        self.wfile.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Nothing."""


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(arguments["--port"])), Handler).serve_forever()
