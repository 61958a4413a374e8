"""Sockets and the HTTP server."""

from __future__ import annotations

import socket
from typing import Any

import uvicorn

from tastemaker.errors import ConfigError


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to this address. Raises ConfigError where that fails."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen at {host} port {port}: {reason}; give another --host or --port") from error


def shown_host(host: str) -> str:
    """A host as it stands in an address."""
    return f"[{host}]" if ":" in host else host


def http_server(app: Any, limit_concurrency: int, proxies: str | None = None) -> uvicorn.Server:
    """The HTTP server of an ASGI application, to be run on a socket of `listen`. It logs no requests.

    `proxies` are the addresses, separated by commas, whose `X-Forwarded-For` and `X-Forwarded-Proto` are believed.
    """
    # uvicorn bounds the size of headers, the time a connection may idle, and the shutdown.
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, limit_concurrency=limit_concurrency,
        timeout_keep_alive=30, timeout_graceful_shutdown=10, lifespan="on", ws="none",
        proxy_headers=proxies is not None, forwarded_allow_ips=proxies,
    )  # fmt: skip
    return uvicorn.Server(config)
