"""Requests that pages of other sites make a visitor's browser send (cross-site request forgery)."""

from __future__ import annotations

from starlette.datastructures import Headers

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    )
)
SECURITY_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not `no-referrer`, with which browsers send forms with `Origin: null`, as pages of other sites may do too.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "cache-control": "no-store",
}
"""Headers of every response of an application for people, where it says nothing else."""


def is_cross_site(headers: Headers, origins: frozenset[str] = frozenset()) -> bool:
    """Whether a browser says that a request is of a page of another origin.

    Browsers send `Sec-Fetch-Site` to https and to this machine, and `Origin` with everything but GET and HEAD. Other
    programs send neither, and have no cookies of their users.
    """
    site = headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    if origin is None or origin in origins:
        return False
    if origin == "null":
        return site != "same-origin"
    return origin.partition("://")[2].lower() != headers.get("host", "").lower()
