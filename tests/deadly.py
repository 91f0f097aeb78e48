"""Work that ends its process, as a library in C may that reads a hostile file."""

import os
import signal

import numpy as np


def tell(*said):
    """Yields what it is told, its arrays doubled."""
    answer = said
    while True:
        answer = yield [one * 2 if isinstance(one, np.ndarray) else one for one in answer]


def crash_at(names, deadly):
    """Yields names; one kills."""
    for name in names:
        if name == deadly:
            os.kill(os.getpid(), signal.SIGSEGV)
        yield name


def decode(source, names, resize):
    """As `images.stamps._decode`, which dies of files whose names say so."""
    for name in names:
        if "deadly" in name:
            os.kill(os.getpid(), signal.SIGSEGV)
        yield (np.full((3, 4, 4), len(name), np.float32),)


def unpack(request):
    """As `images.unpack._unpack`, which dies of files whose names say so."""
    from surveyproc.images.unpack import _unpack

    real, first = _unpack(request), True
    while True:
        if "deadly" in request[0]:
            os.kill(os.getpid(), signal.SIGSEGV)
        answer, first = next(real) if first else real.send(request), False
        request = yield answer


def eat(limit):
    """All the memory that there is, and more."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    yield bytearray(2 * limit)
