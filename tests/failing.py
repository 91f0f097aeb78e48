"""A file system whose disk is full from one of its writes on."""

import errno
import os

from fsspec.implementations.local import LocalFileSystem


class Failing(LocalFileSystem):
    """The local one; of the write that fails first one half is there.

    Parameters
    ----------
    first : int
        The first write that fails, from 1 on.

    Attributes
    ----------
    writes : int
        How many were tried.
    """

    cachable = False

    def __init__(self, first):
        super().__init__()
        self.first, self.writes = first, 0

    def write(self, path, half=None):
        """Count a write; raises at the one that fails first, after `half`, and at all later."""
        self.writes += 1
        if self.writes == self.first and half is not None:
            half()
        if self.writes >= self.first:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def open(self, path, mode="rb", **more):
        if mode == "rb":
            return super().open(path, mode, **more)
        stream = super().open(path, mode, **more)
        real, stream.write = stream.write, None

        def write(data):
            def half():
                real(bytes(data)[: len(data) // 2])
                stream.flush()

            self.write(path, half)
            return real(data)

        stream.write = write
        return stream

    def makedirs(self, path, exist_ok=False):
        self.write(path)
        super().makedirs(path, exist_ok)

    def mv(self, path1, path2, **more):
        self.write(path2)
        super().mv(path1, path2, **more)
