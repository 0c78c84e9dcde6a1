# Beyond the end: ENOSPC for what would need room there, EINVAL for all else; no sum overflows, and nothing changes.
# image: qcow2
from kit import *


def nothing(*args):
    raise AssertionError("there is a status")


TOP = 1 << 64
ranges = [(SIZE, 1), (SIZE - 1, 2), (0, SIZE + 1), (SIZE + 4096, 4096), (1 << 32, 512), ((1 << 63) - 1, 1), (1 << 63, 512), (TOP - 1, 1), (TOP - 512, 512), (TOP - 512, 4096)]
for structured in DIALECTS:
    h = connect([BASE] if structured else [], structured=structured, strict=False)
    for offset, count in ranges:
        fails(errno.EINVAL, h.pread, count, offset)
        fails(errno.ENOSPC, h.pwrite, b"e" * count, offset)
        fails(errno.ENOSPC, h.pwrite, b"e" * count, offset, nbd.CMD_FLAG_FUA)
        fails(errno.EINVAL, h.trim, count, offset)
        fails(errno.ENOSPC, h.zero, count, offset)
        fails(errno.ENOSPC, h.zero, count, offset, nbd.CMD_FLAG_NO_HOLE)
        fails(errno.ENOSPC, h.zero, count, offset, nbd.CMD_FLAG_FAST_ZERO)
        fails(errno.EINVAL, h.cache, count, offset)
        if structured:
            fails(errno.EINVAL, h.pread, count, offset, nbd.CMD_FLAG_DF)
            fails(errno.EINVAL, h.block_status, count, offset, nothing)
            fails(errno.EINVAL, h.block_status, count, offset, nothing, nbd.CMD_FLAG_REQ_ONE)
    for count in ((1 << 32) - 1, (1 << 32) - 65536):
        fails(errno.EINVAL, h.trim, count, 0)
        fails(errno.ENOSPC, h.zero, count, 0)
        fails(errno.EINVAL, h.cache, count, 0)
        fails(errno.ENOSPC, h.zero, count, TOP - count)
        fails(errno.EINVAL, h.trim, count, TOP - count)
    alive(h)
