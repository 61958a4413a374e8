"""Secrets that clients send."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Token:
    """A secret that appears in no error, log or representation of a dataclass."""

    secret: str = field(repr=False)

    def hidden(self, text: str) -> str:
        """The text without the secret, should a server have sent it back."""
        return text.replace(self.secret, "***")


def is_bearer(header: str | None, token: Token) -> bool:
    """Whether an `Authorization` header has the token, in a time that does not depend on the token."""
    return same((header or "").encode("latin-1", "replace"), b"Bearer " + token.secret.encode())


def same(given: bytes, secret: bytes) -> bool:
    """Whether what was given is the secret, in a time that does not depend on the secret."""
    import hmac  # brings OpenSSL, which the help of commands need not load

    return hmac.compare_digest(given, secret)
