"""One process at a time in a folder: a lock that ends with its process, and the name of the process that holds it.

The operating system keeps the lock (flock, LockFileEx). So a killed process leaves none, and between machines it holds
as far as their shared file system passes locks on. Knows nothing of what a folder is for.
"""

import errno
import os
import platform
import sys
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from memdec_edge.errors import OutputError, StageBusyError
from memdec_edge.files import LOCK, write_text

HOLDER = ".memdec-holder"  # who has locked the folder; Windows lets no other process read the file that is locked
PATIENCE = 1.0  # seconds: a process that is about to end may still hold the lock
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # what a file system without locks answers


class FolderLock:
    """The lock of one folder; not held at first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.held = False
        self._lock = FileLock(folder / LOCK, timeout=PATIENCE, thread_local=False)

    def acquire(self) -> None:
        """Hold the lock until release() or the end of the process; make the folder if it is not there.

        A file system without locks is remarked on, on stderr. Raises StageBusyError naming the process that holds the
        lock, and OutputError.
        """
        if self.held:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise StageBusyError(self.folder, self._holder()) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise OutputError(self.folder, error.strerror or str(error)) from error
            print(f"{self.folder}: its file system has no locks; start no second run in it", file=sys.stderr)
        self.held = True
        write_text(self.folder / HOLDER, f"process {os.getpid()} on {platform.node()}\n")

    def release(self) -> None:
        """Let another process hold the lock."""
        if not self.held:
            return
        self.held = False
        with suppress(OSError):  # the folder may be gone; Windows removes no open file, and filelock does so there
            (self.folder / HOLDER).unlink()
            (self.folder / LOCK).unlink()
        self._lock.release()

    def _holder(self) -> str:
        try:
            return (self.folder / HOLDER).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):  # it has just begun, or just ended
            return "another process"
