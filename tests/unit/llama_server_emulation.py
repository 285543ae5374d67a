"""An emulation of llama-server, for the supervisor's tests: a process with its routes, log lines and connections.

Usage: llama_server_emulation.py PORT CONTROL_DIRECTORY [ADDRESS:PORT of a worker …]

It writes its process id to CONTROL/pid and each request's path to CONTROL/requests. Files in CONTROL change what it
does:

no-token       /completion hangs while the file is there
token-status   /completion answers with this HTTP status
beat-hangs     /lora-adapters hangs while the file is there, and /slots does not
ignore-sigterm it does not end when it is asked to
fail           it ends with 3 before it listens
GET /abort     makes it end as llama.cpp's assertions do
"""

import os
import resource
import signal
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

control = Path(sys.argv[2])
lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        with lock, (control / "requests").open("a") as file:
            file.write(self.path + "\n")
        status = 200
        if self.path == "/abort":
            print("0.09.000.000 I srv  update_slots: a line that is no warning", flush=True)
            print("ggml-rpc.cpp:566: Remote RPC server crashed or returned malformed response", flush=True)
            os.abort()
        if self.path == "/lora-adapters":
            wait_while("beat-hangs")
        if self.path == "/completion":
            self.rfile.read(int(self.headers["Content-Length"]))
            wait_while("no-token")
            if (control / "token-status").exists():
                status = int((control / "token-status").read_text())
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Nothing: its log is llama-server's."""


def wait_while(name: str) -> None:
    while (control / name).exists():
        time.sleep(0.02)


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    (control / "pid").write_text(str(os.getpid()))
    if (control / "fail").exists():
        print("0.00.000.000 E main: exiting due to model loading error", flush=True)
        return 3
    if (control / "ignore-sigterm").exists():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connections = []
    print("0.00.029.398 I load_tensors:          CPU model buffer size =    28.62 MiB", flush=True)
    for number, worker in enumerate(sys.argv[3:]):
        address, port = worker.split(":")
        connections.append(socket.create_connection((address, int(port))))
        print(f"0.00.029.399 I load_tensors: RPC{number}[{worker}] model buffer size =    20.34 MiB", flush=True)
    # What llama-server says after it has loaded: more than any buffer of lines should have to hold.
    for line in range(600):
        print(f"0.00.030.000 I srv  chat_template: line {line}")
    sys.stdout.flush()
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
