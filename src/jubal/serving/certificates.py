"""The certificate of this server, read from its files at the start and again when they change.

Who listens keeps one SSL context for as long as it listens: it hands each handshake over to the newest one. A context is made
whole before it takes the place of the last, so that a handshake never meets a certificate without its key, and connections that
are open never notice. Files that are broken, or half written, change nothing.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import structlog

log = structlog.get_logger("jubal.tls")

CHECK_S: Final = 5.0
"""How often the files are looked at."""

_Stamp: TypeAlias = tuple[tuple[int, int, int, int] | None, ...]
"""Device, inode, size and time of change of each file; None for one that is not there."""


class CertificateFault(Exception):
    """Why there is no certificate. at: the settings of the files at fault."""

    def __init__(self, message: str, *at: Literal["tls_cert", "tls_key"]) -> None:
        super().__init__(message)
        self.at = at


@dataclass(frozen=True, slots=True)
class Pair:
    """A private key and its certificate chain, in PEM; and a context that shows them."""

    key: bytes
    chain: bytes
    context: ssl.SSLContext

    def __repr__(self) -> str:
        return "Pair()"  # which would hold the key


class Certificates:
    """The newest certificate. Belongs to one event loop, but `newest` may be read from any thread."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Raises `CertificateFault`."""
        self._files = cert, key
        self._seen = _stamp(self._files)
        self.newest = _read(cert, key)
        self.context = _context()
        """For who listens."""
        self.context.load_cert_chain(cert, key, password=_no_passphrase)  # OpenSSL wants one to choose ciphers by
        self.context.sni_callback = self._hand_over
        self._watching: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    def _hand_over(self, connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        """OpenSSL calls this in each handshake, also where the client names no server."""
        connection.context = self.newest.context

    def watch(self) -> None:
        """Begins to look at the files, every `CHECK_S`, until `close`."""
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="certificates")

    def look(self) -> None:
        """Reads the files soon, whether they look changed or not."""
        self._seen = ()
        self._wake.set()

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})

    async def _watch(self) -> None:
        while True:
            try:
                async with asyncio.timeout(CHECK_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            stamp = await asyncio.to_thread(_stamp, self._files)
            if stamp != self._seen:
                self._seen = stamp  # a fault is told once, and the files are read again when they change again
                await asyncio.to_thread(self._read_again)

    def _read_again(self) -> None:
        try:
            found = _read(*self._files)
        except CertificateFault as fault:
            log.error("the new TLS certificate is not used, the last one goes on", settings=fault.at, error=str(fault))
            return
        if (found.key, found.chain) != (self.newest.key, self.newest.chain):
            self.newest = found
            log.warning("new connections get the new TLS certificate", file=str(self._files[0]))


def _stamp(files: tuple[Path, Path]) -> _Stamp:
    found: list[tuple[int, int, int, int] | None] = []
    for file in files:
        try:
            stat = file.stat()
            found.append((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))
        except OSError:
            found.append(None)
    return tuple(found)


def _read(cert: Path, key: Path) -> Pair:
    """Raises `CertificateFault`."""
    before = _texts(cert, key)
    context = _context()
    try:
        context.load_cert_chain(cert, key, password=_no_passphrase)
    except (ssl.SSLError, OSError, _Encrypted) as error:
        raise CertificateFault(_why(error), "tls_cert", "tls_key") from None
    if _texts(cert, key) != before:
        raise CertificateFault("the files change while they are read.", "tls_cert", "tls_key")
    chain, private = before
    return Pair(private, chain, context)


def _texts(cert: Path, key: Path) -> tuple[bytes, bytes]:
    """Raises `CertificateFault`."""
    return _text(cert, "tls_cert"), _text(key, "tls_key")


def _text(file: Path, at: Literal["tls_cert", "tls_key"]) -> bytes:
    try:
        text = file.read_bytes()
    except OSError as error:
        raise CertificateFault(f"{file} can't be read: {error.strerror}.", at) from None
    if b"-----BEGIN " not in text:
        raise CertificateFault(f"{file} is not a PEM file.", at)
    return text


def _context() -> ssl.SSLContext:
    """For TLS 1.2 and later."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Encrypted(Exception):
    """The key has a passphrase. Without this, OpenSSL would ask for it on the terminal."""


def _no_passphrase() -> str:
    raise _Encrypted


def _why(error: Exception) -> str:
    match error:
        case _Encrypted():
            return "the key is encrypted; `openssl pkey -in KEY -out PLAIN` makes one that can be read without a passphrase."
        case ssl.SSLError(reason="KEY_VALUES_MISMATCH"):
            return "the key does not belong to the certificate."
        case _:
            return f"this is no certificate chain with its key: {getattr(error, 'reason', None) or error}."
