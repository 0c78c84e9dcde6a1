# Flags that are unknown, or not for the command: EINVAL, a payload is consumed, and nothing changes.
# image: qcow2
from kit import *


def nothing(*args):
    raise AssertionError("there is a status")


NO_HOLE, DF, ONE, FAST = nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_DF, nbd.CMD_FLAG_REQ_ONE, nbd.CMD_FLAG_FAST_ZERO
every = [1 << bit for bit in range(1, 16)]
for structured in DIALECTS:
    h = connect([BASE] if structured else [], structured=structured, strict=False)
    for flag in every:
        for flags in (flag, flag | nbd.CMD_FLAG_FUA):
            if not (structured and flag == DF):
                fails(errno.EINVAL, h.pread, 512, 0, flags)
            fails(errno.EINVAL, h.pwrite, b"h" * 4096, 0, flags)
            fails(errno.EINVAL, h.trim, 65536, 0, flags)
            fails(errno.EINVAL, h.flush, flags)
            fails(errno.EINVAL, h.cache, 512, 0, flags)
            if flag not in (NO_HOLE, FAST):
                fails(errno.EINVAL, h.zero, 512, 0, flags)
            if structured and flag != ONE:
                fails(errno.EINVAL, h.block_status, 512, 0, nothing, flags)
    fails(errno.EINVAL, h.pwrite, b"h" * SIZE, 0, 1 << 14)
    alive(h)
