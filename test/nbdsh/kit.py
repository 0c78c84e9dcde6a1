"""What the scripts of this directory have in common.

A script is run by nbdsh through nbdsh_test.go. Its first line says what it
shows, its second which image it is given; the image is its own. It asserts, and
prints nothing when all is well.
"""
import array
import errno
import os
import runpy
import sys
import traceback
import urllib.parse

import nbd

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

URI = os.environ["NBD_URI"]  # of the server, without an export
EXPORT = os.environ["NBD_EXPORT"]  # the script's own image
EXPORTS = os.environ["NBD_EXPORTS"].split()  # all that the server has
DIALECTS = (True, False)  # with structured replies, and without

BASE, DEPTH = "base:allocation", "qemu:allocation-depth"
HOLE, ZERO = nbd.STATE_HOLE, nbd.STATE_ZERO

# Most images are of this size, and every second quarter of it is a hole.
SIZE, QUARTER = MIB, 256 * KIB


def run(script):
    """Run a script, so that an error of libnbd says where it happened."""
    try:
        runpy.run_path(script, run_name="__main__")
    except nbd.Error:
        traceback.print_exc()
        sys.exit(1)


def content(offset, count):
    """What an image holds there: each 8 bytes of data are their offset, from 1."""
    out = b""
    while count > 0:
        n = min(count, QUARTER - offset % QUARTER)
        if offset // QUARTER % 2:
            out += bytes(n)
        else:
            first = offset & ~7
            words = array.array("Q", range(first + 1, offset + n + 1, 8))
            words.byteswap()
            out += words.tobytes()[offset - first :][:n]
        offset, count = offset + n, count - n
    return out


def handle(contexts=(), structured=True, strict=True, options=False, export=EXPORT):
    """A handle that is not connected yet."""
    h = nbd.NBD()
    h.set_export_name(export)
    h.set_request_structured_replies(structured)
    h.set_opt_mode(options)
    if not strict:
        h.set_strict_mode(0)
    for c in contexts:
        h.add_meta_context(c)
    return h


def join(h):
    """Connect a handle to the server."""
    uri = urllib.parse.urlsplit(URI)
    if uri.scheme == "nbd":
        h.connect_tcp(uri.hostname, str(uri.port))
    else:
        h.connect_unix(urllib.parse.parse_qs(uri.query)["socket"][0])
    return h


def connect(*args, **kwargs):
    """A handle that is connected: arguments as of handle."""
    return join(handle(*args, **kwargs))


def fails(error, call, *args, **kwargs):
    """The server refuses a request with an error; libnbd has sent it."""
    what = call.__name__ + str(tuple(len(a) if isinstance(a, bytes) else a for a in args)) + str(kwargs or "")
    try:
        call(*args, **kwargs)
    except nbd.Error as e:
        assert "command failed" in e.string, f"{what} was not sent: {e}"
        got = errno.errorcode.get(e.errnum, e.errnum)
        assert e.errnum == error, f"{what}: {got}, want {errno.errorcode[error]}"
    else:
        raise AssertionError(f"{what} succeeded, want {errno.errorcode[error]}")


def refused(call, *args):
    """The server refuses an option, and the negotiation goes on."""
    try:
        call(*args)
    except nbd.Error:
        pass
    else:
        raise AssertionError(f"{call.__name__}{args} succeeded")


def alive(h, want=content):
    """The connection goes on, and nothing has changed."""
    assert h.aio_is_ready(), h.connection_state()
    assert same(h.pread(SIZE, 0), want(0, SIZE))


def same(got, want):
    """Whether bytes are equal; where not, it says where."""
    if got != want:
        at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
        raise AssertionError(f"{len(got)} bytes, want {len(want)}; byte {at} differs")
    return True


def status(h, count, offset, flags=0):
    """One block status, by context: a list of (length, flags)."""
    out = {}

    def extent(context, at, entries, error):
        assert error.value == 0 and at == offset and context not in out
        out[context] = list(zip(entries[::2], entries[1::2]))

    h.block_status(count, offset, extent, flags)
    for context, list_ in out.items():
        lengths = [n for n, _ in list_]
        assert lengths and min(lengths) > 0, (context, list_)
        assert sum(lengths[:-1]) < count, (context, list_)
        assert offset + sum(lengths) <= h.get_size(), (context, list_)
        assert all(a[1] != b[1] or a[0] + b[0] >= 1 << 32 for a, b in zip(list_, list_[1:])), (context, list_)
        if flags & nbd.CMD_FLAG_REQ_ONE:
            assert len(lengths) == 1 and lengths[0] <= count, (context, list_)
    return out


def mapped(h, context, count=None, offset=0, step=GIB, flags=0):
    """The map of a range as (length, flags), from as many calls as it takes."""
    out, end = [], h.get_size() if count is None else offset + count
    while offset < end:
        for n, said in status(h, min(step, end - offset), offset, flags)[context]:
            n = min(n, end - offset)
            if n and out and out[-1][1] == said:
                out[-1] = (out[-1][0] + n, said)
            elif n:
                out.append((n, said))
            offset += n
    return out


class Flight:
    """Requests under way on one handle, and the order in which they are answered."""

    def __init__(self, h):
        self.h, self.order, self.errors = h, [], {}

    def send(self, name, call, *args, **kwargs):
        def done(error):
            self.order.append(name)
            self.errors[name] = error.value
            return 1

        call(*args, completion=done, **kwargs)

    def land(self):
        while self.h.aio_in_flight() > 0:
            self.h.poll(-1)
        assert not any(self.errors.values()), self.errors
