# Longer than the limits of the graph allow: EINVAL for reads and writes, whose payload is consumed.
# image: policy
from kit import *

for structured in DIALECTS:
    h = connect(structured=structured, strict=False)
    for count in (132 * KIB, 256 * KIB, SIZE):
        fails(errno.EINVAL, h.pread, count, 0)
        fails(errno.EINVAL, h.pwrite, b"g" * count, 0)
        fails(errno.EINVAL, h.pwrite, b"g" * count, 0, nbd.CMD_FLAG_FUA)
        assert same(h.pread(4096, 0), content(0, 4096))
    h.pwrite(content(0, 128 * KIB), 0)
    assert same(h.pread(128 * KIB, 0), content(0, 128 * KIB))
    h.zero(SIZE - 4096, 4096)  # has a limit of its own
    h.trim(SIZE - 4096, 4096)
    assert h.pread(128 * KIB, SIZE - 128 * KIB) == bytes(128 * KIB)
    h.pwrite(content(0, 128 * KIB), 0)
