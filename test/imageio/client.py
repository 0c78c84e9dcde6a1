"""The client library of oVirt imageio against a server: see imageio_client_test.go.

Arguments: the directory of the source images, and the URLs of transfers.
"""

import os
import sys

from ovirt_imageio import client

KIB, MIB = 1 << 10, 1 << 20


def upload(dir, url):
    client.upload(os.path.join(dir, "source.qcow2"), url, None)


def download(dir, url):
    for fmt in "raw", "qcow2":
        client.download(url, os.path.join(dir, "full." + fmt), None, fmt=fmt)


def incremental(dir, url):
    client.download(
        url, os.path.join(dir, "incremental.qcow2"), None, incremental=True,
        backing_file=os.path.join(dir, "full.qcow2"), backing_format="qcow2")


def single(dir, url):
    """Each call of the client, and what it is refused."""
    with client.ImageioClient(url) as c:
        assert c.max_readers == 8 and c.max_writers == 8, (c.max_readers, c.max_writers)
        assert c.size() == 6 * MIB + 512, c.size()
        c.write(MIB, b"x" * (64 * KIB))
        c.zero(MIB + 4 * KIB, 4 * KIB)
        c.flush()
        buf = bytearray(16 * KIB)
        c.read(MIB, buf)
        assert buf == b"x" * (4 * KIB) + bytes(4 * KIB) + b"x" * (8 * KIB)
        extents = list(c.extents("zero"))
        assert extents[0].start == 0, extents
        assert extents[-1].start + extents[-1].length == c.size(), extents
        try:
            list(c.extents("dirty"))
        except Exception as e:
            assert "does not support dirty extents" in str(e), e
        else:
            raise AssertionError("dirty extents without a bitmap")
    try:
        client.ImageioClient(url + "x")
    except Exception as e:
        assert e.code == 403, e
    else:
        raise AssertionError("a ticket that is not good")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
