"""Which gateways of this machine are dead, for sure: each holds a lock on a file of its own for as long as its process lives.

The kernel gives up the lock when the process ends, whatever ended it, and at no other time. That is worth something only
where both speak of the same file to the same kernel. So the file says which boot of which machine, device and inode its owner
saw; where any of them differs (a folder that two machines share, say) nothing is known, and leases decide as ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
"""Linux's name for the time from one start of the kernel to the next. Elsewhere nothing is known of anybody's death."""
NEW: Final = ".new"
"""How the name of a file ends whose lock may not be taken yet."""
TOLD_BYTES_MAX: Final = 200
FORGOTTEN_AFTER_S: Final = 24 * 3600.0
"""Files of which nothing is known are removed then. That takes nothing from anybody: every lease is over long before."""


class Presence:
    """A folder with one file for each gateway that serves from this home. boot_id: a file, for tests."""

    def __init__(self, folder: Path, *, boot_id: Path = BOOT_ID) -> None:
        self._folder = folder
        self._boot_id = boot_id
        self._file: Path | None = None
        self._descriptor = -1

    def begin(self, gateway: str) -> None:
        """This process is `gateway` from now on. Raises `OSError` where that can't be written down; then others know nothing."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = self._folder / gateway
        new = file.with_name(gateway + NEW)
        descriptor = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, self._seen(descriptor))
            new.rename(file)  # nobody finds it without its lock
        except BaseException:
            os.close(descriptor)
            raise
        self._file, self._descriptor = file, descriptor

    def end(self, *, clean: bool) -> None:
        """This process is no gateway any more. clean: nothing of it is left that `bury` should look after."""
        if self._file is None:
            return
        if clean:
            with contextlib.suppress(OSError):
                self._file.unlink()
        os.close(self._descriptor)
        self._file = None

    def bury(self, settle: Callable[[str], None]) -> int:
        """Calls `settle` with each gateway that is dead for sure, and forgets it then. Returns how many there were.

        Each by one caller at a time; one for which `settle` raises is found again. Raises what `settle` does, but for `OSError`.
        """
        buried = 0
        with contextlib.suppress(OSError):
            for file in sorted(self._folder.iterdir()):
                with contextlib.suppress(OSError):  # another was faster, or the file is of another account
                    buried += self._buried(file, settle)
        return buried

    def _buried(self, file: Path, settle: Callable[[str], None]) -> bool:
        descriptor = os.open(file, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A file whose lock is free and that tells of another kernel may be of a gateway that lives there.
            known = not file.name.endswith(NEW) and os.read(descriptor, TOLD_BYTES_MAX) == self._seen(descriptor)
            if known:
                settle(file.name)
            if known or os.fstat(descriptor).st_mtime + FORGOTTEN_AFTER_S < time.time():
                file.unlink()
            return known
        except BlockingIOError:
            return False  # it lives, or somebody buries it
        finally:
            os.close(descriptor)

    def _seen(self, descriptor: int) -> bytes:
        """What a process of this machine says of an open file. Raises `OSError` where the kernel has no name for its boot."""
        about = os.fstat(descriptor)
        return b"%s %d %d\n" % (self._boot_id.read_bytes().strip(), about.st_dev, about.st_ino)
