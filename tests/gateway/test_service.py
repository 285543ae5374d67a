"""The command as systemd runs it: a process, its exit codes, its signals and its notifications."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from .conftest import MODEL, StartBackend
from .fake_llama_server import hang


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def launch(config: Path, notify: Path | None = None, kept: int | None = None) -> asyncio.subprocess.Process:
    """`kept`: a descriptor that it gets as systemd gives what it kept."""
    environment = {**os.environ, **({"NOTIFY_SOCKET": str(notify)} if notify else {})}
    store = f'LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=listener exec "$@" 3<&{kept}'
    return await asyncio.create_subprocess_exec(
        *(("bash", "-c", store, "bash") if kept is not None else ()),
        sys.executable,
        "-m",
        "bramble.gateway",
        "--config",
        str(config),
        env=environment,
        pass_fds=() if kept is None else (kept,),
        stderr=asyncio.subprocess.PIPE,
    )


def write_config(directory: Path, url: str, port: int) -> Path:
    file = directory / "gateway.json"
    backend = {"name": "pi1", "kind": "llama_server", "url": url, "models": [{"name": MODEL, "context": 9}]}
    file.write_text(json.dumps({"listen": {"port": port}, "backends": [backend]}))
    return file


@pytest.fixture
def notifications(tmp_path: Path) -> socket.socket:
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(tmp_path / "notify"))
    receiver.setblocking(False)
    return receiver


async def test_it_tells_when_it_is_ready_and_ends_in_time(
    tmp_path: Path, start_backend: StartBackend, notifications: socket.socket
) -> None:
    server = await start_backend()
    server.faults.append(hang(2))
    port = free_port()
    process = await launch(write_config(tmp_path, server.url, port), tmp_path / "notify")
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(20), aiohttp.ClientSession() as http:
            assert await loop.sock_recv(notifications, 100) == b"FDSTORE=1\nFDNAME=listener"
            assert await loop.sock_recv(notifications, 100) == b"READY=1"
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
            async with http.post(f"http://127.0.0.1:{port}/api/chat", json=body) as response:
                assert [json.loads(await response.content.readline())["done"] for _ in range(2)] == [False, False]
                began = time.monotonic()
                process.send_signal(signal.SIGTERM)
                assert await loop.sock_recv(notifications, 100) == b"STOPPING=1"
                assert json.loads(await response.content.readline()) == {"error": "the gateway is shutting down"}
            assert await process.wait() == 0
            assert time.monotonic() - began < 5
    finally:
        if process.returncode is None:
            process.kill()
        notifications.close()
    assert process.stderr is not None
    log = (await process.stderr.read()).decode()
    assert "Traceback" not in log
    assert log.count("path=/api/chat") == 1


async def test_who_connects_while_it_starts_anew_waits(tmp_path: Path, notifications: socket.socket) -> None:
    port = free_port()
    config = write_config(tmp_path, "http://127.0.0.1:9", port)
    notifications.setblocking(True)
    notifications.settimeout(20)
    first = await launch(config, tmp_path / "notify")
    _, (kept, *_), _, _ = await asyncio.to_thread(socket.recv_fds, notifications, 100, 1)
    assert await asyncio.to_thread(notifications.recv, 100) == b"READY=1"
    first.terminate()
    await first.communicate()
    assert notifications.recv(100) == b"STOPPING=1"
    async with asyncio.timeout(20), aiohttp.ClientSession() as http:
        waits = asyncio.create_task(http.get(f"http://127.0.0.1:{port}/api/version"))
        await asyncio.wait([waits], timeout=0.1)
        assert not waits.done()
        second = await launch(config, tmp_path / "notify", kept)
        try:
            async with await waits as response:
                assert response.status == 200
        finally:
            second.terminate()
            await second.communicate()
            os.close(kept)
    # It listens on what it got, and gives nothing away a second time.
    assert notifications.recv(100) == b"READY=1"
    notifications.close()


async def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        process = await launch(write_config(tmp_path, "http://127.0.0.1:9", port))
        async with asyncio.timeout(20):
            _, errors = await process.communicate()
    assert process.returncode == 1
    assert errors.decode().startswith(f"bramble-gateway: cannot listen on 127.0.0.1:{port}: ")
    assert len(errors.decode().splitlines()) == 1


@pytest.mark.lab
@pytest.mark.skipif(
    "BRAMBLE_LLAMA_SERVER" not in os.environ or "BRAMBLE_MODEL" not in os.environ,
    reason="set BRAMBLE_LLAMA_SERVER and BRAMBLE_MODEL to a llama-server and a GGUF file",
)
async def test_the_real_llama_server_may_die(tmp_path: Path) -> None:
    """Killed in the middle of an answer: the client gets an error, the next request waits for the restart."""
    port, front = free_port(), free_port()

    async def llama_server() -> asyncio.subprocess.Process:
        arguments = ["-m", os.environ["BRAMBLE_MODEL"], "-c", "1024", "-np", "1", "-t", "1", "--cache-ram", "0"]
        return await asyncio.create_subprocess_exec(
            os.environ["BRAMBLE_LLAMA_SERVER"],
            *arguments,
            "--port",
            str(port),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )

    engine = await llama_server()
    gateway = await launch(write_config(tmp_path, f"http://127.0.0.1:{port}", front))
    try:
        async with asyncio.timeout(60), aiohttp.ClientSession() as http:
            url = f"http://127.0.0.1:{front}"
            while True:
                try:
                    async with http.get(f"{url}/") as response:
                        assert response.status == 200
                        break
                except aiohttp.ClientConnectorError:
                    await asyncio.sleep(0.05)
            body: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
            async with http.post(f"{url}/api/chat", json=body) as response:
                for _ in range(5):
                    assert json.loads(await response.content.readline())["message"]["content"]
                engine.kill()
                await engine.wait()
                assert set(json.loads((await response.content.read()).splitlines()[-1])) == {"error"}
            body = {**body, "stream": False, "options": {"num_predict": 3}}
            began = time.monotonic()
            request = asyncio.create_task(http.post(f"{url}/api/chat", json=body))
            engine = await llama_server()
            response = await request
            assert (response.status, (await response.json())["eval_count"]) == (200, 3)
            assert time.monotonic() - began < 30
    finally:
        for process in (gateway, engine):
            if process.returncode is None:
                process.kill()
            await process.wait()
