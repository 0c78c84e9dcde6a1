# What is no multiple of the minimum is EINVAL, without a disconnect; what is, works.
# image: policy
from kit import *


def nothing(*args):
    raise AssertionError("there is a status")


for structured in DIALECTS:
    h = connect([BASE] if structured else [], structured=structured, strict=False)
    for offset, count in ((1, 4096), (0, 1), (0, 4095), (4096, 512), (512, 4096), (2048, 2048), (SIZE - 1, 1), (SIZE - 512, 512)):
        fails(errno.EINVAL, h.pread, count, offset)
        if offset + count <= SIZE:
            fails(errno.EINVAL, h.pwrite, b"f" * count, offset)
            fails(errno.EINVAL, h.zero, count, offset)
            fails(errno.EINVAL, h.zero, count, offset, nbd.CMD_FLAG_FAST_ZERO)
        fails(errno.EINVAL, h.trim, count, offset)
        fails(errno.EINVAL, h.cache, count, offset)
        if structured:
            fails(errno.EINVAL, h.pread, count, offset, nbd.CMD_FLAG_DF)
            fails(errno.EINVAL, h.block_status, count, offset, nothing)
    for offset in range(0, SIZE, 128 * KIB):
        assert same(h.pread(128 * KIB, offset), content(offset, 128 * KIB))
    h.pwrite(content(4096, 4096), 4096, nbd.CMD_FLAG_FUA)
    h.zero(4096, QUARTER)
    h.trim(4096, QUARTER)
    h.cache(4096, 4096)
    assert same(h.pread(8192, 0), content(0, 8192))
    if structured:
        for n, _ in mapped(h, BASE):
            assert n % 4096 == 0, n
