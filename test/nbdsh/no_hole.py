# WRITE_ZEROES with NO_HOLE: zeros that have storage, and cannot run out of it.
# image: qcow2
from kit import *

h = connect([BASE])
for offset, count in ((0, 65536), (QUARTER, 65536), (QUARTER + 3 * 65536 + 1000, 65536 - 2000), (2 * QUARTER + 512, 100), (3 * QUARTER - 10, 20)):
    h.zero(count, offset, nbd.CMD_FLAG_NO_HOLE)
    assert h.pread(count, offset) == bytes(count)
    assert not any(flags & HOLE for _, flags in mapped(h, BASE, count, offset)), (offset, count)
h.zero(SIZE, 0, nbd.CMD_FLAG_NO_HOLE)
assert not any(flags & HOLE for _, flags in mapped(h, BASE))
assert h.pread(SIZE, 0) == bytes(SIZE)
