"""The names by which a server may be called.

A web page whose name is made to resolve to the server's address would otherwise reach it through its visitor's browser
(DNS rebinding), as if it were of the same site.
"""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from tastemaker.errors import ConfigError


def known_hosts(host: str) -> frozenset[str] | None:
    """The host names under which a server bound to `host` may be called: only its own where it is on loopback."""
    return frozenset({"localhost", "127.0.0.1", "::1", host}) if is_loopback(host) else None


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def machine_hosts(host: str) -> frozenset[str]:
    """The names of a server that is bound to `host` and may be reached from other machines.

    Besides `host` and this machine's own names, `*` stands for every IP address: rebinding needs a name.
    """
    name = socket.gethostname().lower()
    return frozenset({"localhost", "*", host.lower(), name, f"{name}.local"})


def host_name(header: str | None) -> str | None:
    """The name in a `Host` header, in lower case, without the port; None where it is not one."""
    if not header or any(letter in header for letter in "/@?#\\ \t,"):
        return None
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None


def is_known(name: str | None, hosts: frozenset[str] | None) -> bool:
    """Whether a server with these names may be called by this one; None takes any."""
    if hosts is None:
        return True
    if name is None:
        return False
    if name in hosts:
        return True
    return "*" in hosts and _is_address(name)


def check_port(port: int) -> None:
    """Raises ConfigError for what is no port."""
    if not 0 <= port < 65536:
        raise ConfigError(f"--port is {port}, but must be 0 (any that is free) to 65535")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def checked_public_url(url: str) -> str:
    """The address under which a proxy shows a server, without a last slash. Raises ConfigError."""
    shown = "https://labels.example.org"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"the address {url!r} is none: give one such as {shown}") from error
    if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable() or " " in url:
        raise ConfigError(f"the address {url!r} is none: give one such as {shown}")
    if parts.path not in ("", "/") or parts.query or parts.fragment or parts.username is not None:
        raise ConfigError(f"the address {url!r} must be a scheme and a host alone, such as {shown}")
    return f"{parts.scheme}://{parts.netloc.lower()}"
