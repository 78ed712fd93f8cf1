"""Text that only this service reads again: authenticated encryption under a key that never leaves the store.

All gateways on a store share the key, so what one sealed another opens (xai-api.md 8.8).
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

SEALED_CHARS_MAX: Final = 8 << 20


class FernetSealer:
    """Fernet: AES-128-CBC with an HMAC-SHA256. secret: of the store, from which a key for this purpose alone is derived."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._made: Fernet | None = None

    def seal(self, text: str) -> str:
        return self._fernet.encrypt(text.encode()).decode("ascii")

    def open(self, sealed: str) -> str | None:
        """None for what was not sealed here."""
        from cryptography.fernet import InvalidToken

        if len(sealed) > SEALED_CHARS_MAX or not sealed.isascii():
            return None
        try:
            return self._fernet.decrypt(sealed).decode()
        except (InvalidToken, UnicodeDecodeError):
            return None

    @property
    def _fernet(self) -> Fernet:
        """Made at its first use: most servers never need the library."""
        if self._made is None:
            from cryptography.fernet import Fernet
            from cryptography.hazmat.primitives.hashes import SHA256
            from cryptography.hazmat.primitives.kdf.hkdf import HKDF

            key = HKDF(SHA256(), 32, salt=None, info=b"jubal sealed content").derive(self._secret)
            self._made = Fernet(base64.urlsafe_b64encode(key))
        return self._made
