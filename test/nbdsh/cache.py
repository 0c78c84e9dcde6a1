# CACHE: a hint for any range, which changes nothing.
# image: qcow2
from kit import *

for structured in DIALECTS:
    h = connect(structured=structured, strict=False)
    for offset, count in ((0, 1), (0, SIZE), (QUARTER - 3, 7), (SIZE - 1, 1), (QUARTER, QUARTER)):
        h.cache(count, offset)
    for flag in (nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_DF, nbd.CMD_FLAG_REQ_ONE, nbd.CMD_FLAG_FAST_ZERO, 1 << 5, 1 << 15):
        fails(errno.EINVAL, h.cache, 512, 0, flag)
    alive(h)
