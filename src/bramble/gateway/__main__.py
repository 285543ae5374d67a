"""`bramble-gateway --config FILE [--check]`.

Exit codes: 0 ended by SIGTERM or SIGINT, or --check found no problem; 1 cannot listen; 2 the configuration is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from aiohttp import web

from .app import Gateway, package_version
from .config import Config, ConfigError, load_config
from .systemd import listen, notify

# Together below the 5 s in which the service has to end after SIGTERM.
GRACE_S = 4.0
CLOSE_S = 0.5

log = logging.getLogger("bramble.gateway")


async def serve(config: Config) -> int:
    """Serves until SIGTERM or SIGINT. Returns the exit code."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    gateway = Gateway(config)
    # handler_cancellation: a client that goes away cancels its handler, and so the generation on the backend.
    runner = web.AppRunner(gateway.app(), handler_cancellation=True, access_log=None, shutdown_timeout=CLOSE_S)
    await runner.setup()
    try:
        try:
            listener = listen(config.listen.host, config.listen.port)
        except OSError as error:
            where = f"{config.listen.host}:{config.listen.port}"
            print(f"bramble-gateway: cannot listen on {where}: {error.strerror or error}", file=sys.stderr)
            return 1
        site = web.SockSite(runner, listener)
        await site.start()
        log.info("listening on %s:%d, %d backend(s)", config.listen.host, config.listen.port, len(config.backends))
        notify("READY=1")
        await stop.wait()
        notify("STOPPING=1")
        log.info("stopping")
        await site.stop()
        await gateway.drain(GRACE_S)
        return 0
    finally:
        await runner.cleanup()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="bramble-gateway", description="Ollama- and OpenAI-compatible gateway in front of inference servers."
    )
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="configuration, JSON")
    parser.add_argument("--check", action="store_true", help="check the configuration and exit")
    parser.add_argument("--version", action="version", version=f"%(prog)s {package_version()}")
    options = parser.parse_args(arguments)
    try:
        config = load_config(options.config)
    except ConfigError as error:
        for problem in error.problems:
            print(f"bramble-gateway: {options.config}: {problem}", file=sys.stderr)
        return 2
    if options.check:
        return 0
    # No time stamps: the journal has its own.
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    return asyncio.run(serve(config))


if __name__ == "__main__":
    sys.exit(main())
