# WRITE_ZEROES of any range: it reads zeros, and its neighbours are as they were.
# image: qcow2
from kit import *

model = bytearray(content(0, SIZE))
h = connect([BASE])
for offset, count in ((0, 1), (511, 2), (8192, 4096), (65535, 65538), (QUARTER - 5, 70000), (QUARTER + 9, 1), (2 * QUARTER, 65536), (SIZE - 1, 1)):
    h.zero(count, offset)
    model[offset : offset + count] = bytes(count)
    assert same(h.pread(SIZE, 0), bytes(model)), (offset, count)
assert status(h, 65536, 2 * QUARTER)[BASE][0] == (65536, HOLE | ZERO)
h.zero(SIZE, 0)
assert mapped(h, BASE) == [(SIZE, HOLE | ZERO)], mapped(h, BASE)
h.pwrite(b"a", 5)
assert h.pread(8, 0) == b"\0\0\0\0\0a\0\0"
