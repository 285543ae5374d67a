"""EMULATION of distributed-llama: `dllama worker`, `dllama inference`, `dllama-api`; command line, protocol, defects.

After src/app.cpp, src/dllama.cpp, src/dllama-api.cpp and src/nn/nn-network.cpp of 8d624a7. It computes nothing: each
token of an answer is a word, for which the root asks all workers once. As in the original,

- a worker listens for one root only, and while it serves one for none; whatever else connects ends it with 1;
- a worker in the mesh connects to those after it and waits for those before it;
- dllama-api ends with an abort at a connection without a request, JSON that is not valid, `content` that is no text,
  `stop` that is no list, and null where a number or truth value belongs;
- it serves one connection at a time and waits for its request for ever; it knows Content-Length in this spelling only;
- a prompt that is too long is answered with nothing, and it prints prompts and answers;
- it tries again every 3 s where a worker is not to be had.

Usage: dllama.py dllama|dllama-api ARGUMENTS
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

ACK = 23571114
# The numbers of the headers' keys: src/llm.hpp and src/tokenizer.hpp.
N_LAYERS, N_KV_HEADS, SEQ_LEN, WEIGHT_FLOAT_TYPE = 4, 6, 10, 13
Q40 = 2
# Characters that stand for one token.
CHARACTERS = 4
# Tokens of a prompt that are computed at once: nBatches of src/app.cpp.
BATCH = 32
OPTIONS = (
    *("--model", "--tokenizer", "--prompt", "--buffer-float-type", "--host", "--port", "--nthreads", "--steps"),
    *("--temperature", "--topp", "--seed", "--chat-template", "--max-seq-len", "--net-turbo", "--gpu-index"),
)
USAGE = """\
EMULATION of distributed-llama 8d624a7
Usage: dllama-api {--model <path>} {--tokenizer <path>} [--host <addr>] [--port <p>]
        [--buffer-float-type {f32|f16|q40|q80}]
        [--max-seq-len <max>]
        [--nthreads <n>]
        [--workers <ip:port> ...]
        [--temperature <temp>]
        [--topp <t>]
        [--seed <s>]
"""


class AbortError(Exception):
    """What nothing catches in the original: a std::runtime_error, a JSON type error."""


class TransferError(Exception):
    """NnTransferSocketException: the other side is gone."""


class InferenceError(Exception):
    """NnExecutorException: a worker was lost in the middle of a computation."""


class ConnectError(Exception):
    """NnConnectionSocketException: there is nobody."""


def say(text: str) -> None:
    print(text, flush=True)


def options(arguments: list[str]) -> dict[str, Any]:
    """AppCliArgs::parse: in pairs, but for --workers, whose list ends at the next dash."""
    found: dict[str, Any] = {"--workers": [], "--host": "0.0.0.0", "--port": "9990", "--nthreads": "1"}
    index = 0
    while index + 1 < len(arguments):
        name = arguments[index]
        if name == "--workers":
            index += 1
            while index < len(arguments) and not arguments[index].startswith("-"):
                host, colon, port = arguments[index].partition(":")
                if not colon:
                    raise AbortError(f"Invalid worker address: {arguments[index]}")
                found["--workers"].append((host, int(port)))
                index += 1
            continue
        if name not in OPTIONS:
            raise AbortError(f"Unknown option: {name}")
        found[name] = arguments[index + 1]
        index += 2
    if int(found["--nthreads"]) < 1:
        raise AbortError("Number of threads must be at least 1")
    return found


def keep_alive(peer: socket.socket) -> socket.socket:
    """What the recipe links into the original, which sets no keepalive by itself."""
    if os.environ.get("EMULATION_KEEPALIVE"):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 3), (socket.TCP_KEEPCNT, 3)):
            peer.setsockopt(socket.IPPROTO_TCP, option, value)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20000)
    return peer


def receive(peer: socket.socket, size: int) -> bytes:
    content = b""
    while len(content) < size:
        try:
            piece = peer.recv(size - len(content))
        except OSError as error:
            raise TransferError("Error reading from socket") from error
        if not piece:
            raise TransferError("Socket closed")
        content += piece
    return content


def send(peer: socket.socket, content: bytes) -> None:
    try:
        peer.sendall(content)
    except OSError as error:
        raise TransferError("Error writing to socket") from error


def number(peer: socket.socket) -> int:
    return int(struct.unpack("<i", receive(peer, 4))[0])


def acknowledged(peer: socket.socket) -> None:
    if number(peer) != ACK:
        raise AbortError("Invalid ack packet")


def connect(host: str, port: int) -> socket.socket:
    try:
        return keep_alive(socket.create_connection((host, port)))
    except OSError as error:
        say(f"Cannot connect to {host}:{port} ({error.strerror})")
        raise ConnectError("Cannot connect") from error


def listen(host: str, port: int) -> socket.socket:
    try:
        server = socket.create_server((host, port), backlog=4096)
    except OSError as error:
        raise AbortError(f"Cannot bind port: {error.strerror}") from error
    say(f"Listening on {host}:{port}...")
    return server


def serve_root(host: str, port: int) -> list[socket.socket]:
    """NnNetwork::serve: the root, then a connection to each other worker."""
    with listen(host, port) as server:
        root, source = server.accept()
        keep_alive(root)
        say(f"⭕ The root node has connected (EMULATION: from {source[0]})")
        count = number(root)
        index = number(root)
        others = []
        for _ in range(count - 1):
            name = receive(root, number(root)).rstrip(b"\0").decode()
            others.append((name, number(root)))
        send(root, struct.pack("<i", ACK))
        acknowledged(root)
        peers = [root]
        for place, other in enumerate(others):
            peers.append(connect(*other) if place >= index else keep_alive(server.accept()[0]))
    say("⭕ Network is initialized")
    return peers


def worker(arguments: list[str]) -> NoReturn:
    wanted = options(arguments)
    while True:
        peers = serve_root(str(wanted["--host"]), int(wanted["--port"]))
        left = number(peers[0])
        say(f"📀 RequiredMemory: {left >> 20} MB")
        while left:
            left -= len(receive(peers[0], min(left, 1 << 16)))
        send(peers[0], struct.pack("<i", ACK))
        say("💿 Weights loaded")
        try:
            # One control packet a token; 0 says that it was the last.
            while number(peers[0]):
                send(peers[0], struct.pack("<i", ACK))
        except TransferError as error:
            say(f"🚨 Network error: {error}")
        for peer in peers:
            peer.close()
        say("⭕ Network is closed")


def header(path: Path, magic: int) -> dict[int, int]:
    """The numbers at the beginning of a file."""
    try:
        with path.open("rb") as file:
            found, size = struct.unpack("<ii", file.read(8))
            if found != magic:
                raise AbortError("Unsupported magic number")
            numbers = struct.unpack(f"<{(size - 8) // 4}i", file.read(size - 8))
    except OSError as error:
        raise AbortError(f"Cannot open model file ({path}): {error.strerror}") from error
    except struct.error as error:
        raise AbortError("Cannot read header values") from error
    return dict(zip(numbers[::2], numbers[1::2], strict=True))


class Root:
    """The model over its workers."""

    def __init__(self, wanted: dict[str, Any]) -> None:
        path = Path(str(wanted["--model"]))
        about = header(path, 0xA00ABCD)
        header(Path(str(wanted["--tokenizer"])), 0x567124)
        workers = wanted["--workers"]
        nodes = len(workers) + 1
        if nodes > about[N_KV_HEADS]:
            raise AbortError("This version does not support more nodes than the number of KV heads in the model")
        if about[WEIGHT_FLOAT_TYPE] == Q40 and wanted.get("--buffer-float-type") != "q80":
            raise AbortError("This version supports only Q40 weights with Q80 sync type")
        if about[N_KV_HEADS] % nodes:
            say("dllama-api: src/nn/nn-core.cpp:211: Assertion `kvDim % nNodes == 0' failed.")
            os.abort()
        self.context = min(about[SEQ_LEN], int(wanted.get("--max-seq-len", 0)) or about[SEQ_LEN])
        self.peers: list[socket.socket] = []
        for index, (host, port) in enumerate(workers):
            say(f"⭕ Socket[{index}]: connecting to {host}:{port} worker")
            peer = connect(host, port)
            self.peers.append(peer)
            send(peer, struct.pack("<ii", len(workers), index))
            for other in (*workers[:index], *workers[index + 1 :]):
                name = other[0].encode() + b"\0"
                send(peer, struct.pack("<i", len(name)) + name + struct.pack("<i", other[1]))
            acknowledged(peer)
            say(f"⭕ Socket[{index}]: connected")
        for peer in self.peers:
            send(peer, struct.pack("<i", ACK))
        share = path.stat().st_size // nodes
        for peer in self.peers:
            send(peer, struct.pack("<i", share))
            send(peer, b"\0" * share)
            acknowledged(peer)
        say("💿 Weights loaded")

    def token(self) -> None:
        """One computation on all nodes."""
        try:
            for peer in self.peers:
                send(peer, struct.pack("<i", 1))
            for peer in self.peers:
                acknowledged(peer)
        except TransferError as error:
            raise InferenceError("Execution failed in one of the threads") from error
        time.sleep(0.02)

    def close(self) -> None:
        for peer in self.peers:
            peer.close()


def inference(arguments: list[str]) -> None:
    """inference() of src/dllama.cpp: a line for each batch of the prompt and for each token, then the summary.

    The number of tokens is right, and that of bytes is what goes over the network here.
    """
    wanted = options(arguments)
    if "--prompt" not in wanted:
        raise AbortError("Prompt is required")
    steps = int(wanted.get("--steps", 0))
    if steps == 0:
        raise AbortError("Number of steps is required")
    say(USAGE.splitlines()[0])
    root = Root(wanted)
    tokens = len(wanted["--prompt"]) // CHARACTERS + 1
    if tokens > steps:
        raise AbortError("The number of prompt tokens is greater than the number of steps")
    say(wanted["--prompt"])
    traffic = f"Sent{4 * len(root.peers) // 1024:6d} kB Recv{4 * len(root.peers) // 1024:6d} kB"
    spent: dict[str, list[float]] = {"Eval": [], "Pred": []}
    done = 0
    while done < min(steps, root.context):
        batch = min(BATCH, tokens - 1 - done)
        name, count = ("Eval", batch) if batch > 0 else ("Pred", 1)
        began = time.monotonic()
        root.token()
        spent[name].append((time.monotonic() - began) * 1000)
        # All of it counts as computing, where the original would tell how long it waited for the others.
        shown = f"{int(spent[name][-1]):5d} ms Sync{0:5d} ms | {traffic} |"
        say(f"🔷️ Eval{shown} ({count} tokens)" if name == "Eval" else f"🔶 Pred{shown} word{done}")
        done += count
    root.close()
    print()
    for name, head, count in (("Eval", "Evaluation", tokens - 1), ("Pred", "Prediction", done - tokens + 1)):
        total = sum(spent[name])
        rate = f"{count * 1000 / total:3.2f} ({total / count:3.2f} ms/tok)" if count and total else "-nan (-nan ms/tok)"
        batches = f"   nBatches: {BATCH}\n" if name == "Eval" else ""
        print(f"{head}\n{batches}    nTokens: {count}\n   tokens/s: {rate}")


def read_request(client: socket.socket) -> tuple[str, str, Any]:
    """HttpRequest::read: method, path and the JSON of the body, None without one."""
    content = b""
    while b"\r\n\r\n" not in content:
        try:
            piece = client.recv(1 << 16)
        except OSError:
            piece = b""
        if not piece:
            raise AbortError("Error while reading headers from socket")
        content += piece
    head, _, body = content.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"Content-Length":
            while len(body) < int(value):
                piece = client.recv(int(value) - len(body))
                if not piece:
                    raise AbortError("Error while reading body from socket")
                body += piece
    words = head.decode(errors="replace").split()
    try:
        return words[0], words[1], json.loads(body) if body else None
    except (ValueError, IndexError) as error:
        raise AbortError(f"[json.exception.parse_error.101] {error}") from error


def check(body: Any) -> tuple[list[str], bool, int]:
    """ApiServer::parseRequest: the messages' texts, whether to stream, the most tokens. AbortError: a wrong type."""
    body = body if isinstance(body, dict) else {}
    messages = body.get("messages") or []
    kinds: tuple[tuple[str, type | tuple[type, ...]], ...] = (
        *(("stream", bool), ("temperature", (int, float)), ("seed", int)),
        *(("max_tokens", int), ("stop", list)),
    )
    for name, kind in kinds:
        if name in body and not isinstance(body[name], kind):
            raise AbortError(f"[json.exception.type_error.302] {name}")
    for message in messages:
        if not (isinstance(message.get("role"), str) and isinstance(message.get("content"), str)):
            raise AbortError("[json.exception.type_error.302] type must be string")
    return [message["content"] for message in messages], bool(body.get("stream")), int(body.get("max_tokens", -1))


def answer(client: socket.socket, content: str, kind: str = "application/json") -> None:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}; charset=utf-8\r\nConnection: close\r\n"
    send(client, f"{head}Content-Length: {len(content.encode())}\r\n\r\n{content}".encode())


def chunk(client: socket.socket, content: str) -> None:
    send(client, f"{len(content.encode()):x}\r\n{content}\r\n".encode())


def complete(client: socket.socket, root: Root, body: Any) -> None:
    texts, stream, limit = check(body)
    prompt = "\n".join(texts)
    say(f"🔹{prompt}🔸")
    start = min(len(prompt) // CHARACTERS, root.context)
    end = min(start + limit, root.context) if limit > 0 else min(start + 16, root.context)
    if stream:
        send(client, b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    said = []
    for place in range(start, end):
        root.token()
        said.append(f" word{place}")
        say(said[-1])
        if stream:
            delta = {
                "choices": [{"index": 0, "finish_reason": "", "delta": {"role": "assistant", "content": said[-1]}}]
            }
            chunk(client, f"data: {json.dumps(delta)}\r\n\r\n")
    if stream:
        chunk(client, f"data: {json.dumps({'choices': [{'index': 0, 'finish_reason': 'stop'}]})}\r\n\r\n")
        chunk(client, "data: [DONE]")
        send(client, b"0000\r\n\r\n")
        return
    message = {"role": "assistant", "content": "".join(said)}
    answer(client, json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": ""}]}))


def serve(root: Root, wanted: dict[str, Any]) -> NoReturn:
    model = Path(str(wanted["--model"])).name
    with listen(str(wanted["--host"]), int(wanted["--port"])) as server:
        while True:
            client, _ = server.accept()
            with client:
                method, path, body = read_request(client)
                say(f"🔷 {method} {path}")
                try:
                    if (method, path) == ("GET", "/v1/models"):
                        answer(client, json.dumps({"object": "list", "data": [{"id": model, "object": "model"}]}))
                    elif (method, path) == ("POST", "/v1/chat/completions"):
                        complete(client, root, body)
                    else:
                        send(
                            client, b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 9\r\n\r\nNot Found"
                        )
                except TransferError as error:
                    say(f"Socket error: 0 {error}")


def api(arguments: list[str]) -> NoReturn:
    if not {"--help", "--usage", "-h"}.isdisjoint(arguments):
        print(USAGE, file=sys.stderr, end="")
        sys.exit(0)
    wanted = options(arguments)
    while True:
        try:
            root = Root(wanted)
            try:
                serve(root, wanted)
            finally:
                root.close()
        except ConnectError as error:
            say(f"🚨 Connection error: {error}")
        except InferenceError as error:
            say(f"🚨 Inference error: {error}")
        say("🔄 Retrying in 3 seconds...")
        time.sleep(3)


def main(arguments: list[str]) -> NoReturn:
    # The original has Python's reaction to neither.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    name, *rest = arguments or [""]
    try:
        if name == "dllama-api":
            api(rest)
        if rest[:1] == ["inference"]:
            inference(rest[1:])
            sys.exit(0)
        if rest[:1] != ["worker"]:
            raise AbortError("Unsupported mode")
        worker(rest[1:])
    except (AbortError, TransferError, ConnectError) as error:
        if name == "dllama-api":
            print(
                f"terminate called after throwing an instance of 'std::runtime_error'\n  what():  {error}",
                file=sys.stderr,
            )
            sys.stderr.flush()
            os.abort()
        say(f"🚨 Critical error: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
