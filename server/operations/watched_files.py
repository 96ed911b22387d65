"""Whether files have changed. Files are replaced by renaming, by new symbolic links, or written in place."""

from __future__ import annotations

import os
from collections.abc import Sequence

# What tells a version of a file from another one: device, inode, times of the changes, size. None: there is no file.
Version = tuple[int, ...] | None


class WatchedFiles:
    """Some files that belong together. Not for several threads at a time."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = tuple(paths)
        self._versions: tuple[Version, ...] | None = None

    def have_changed(self) -> bool:
        """Whether any file has changed since the last call. True at the first call."""
        versions = tuple(_find_version(path) for path in self._paths)
        if versions == self._versions:
            return False
        self._versions = versions
        return True


def _find_version(path: str) -> Version:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size
