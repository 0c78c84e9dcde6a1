# TRIM: its range is given back where it has whole clusters, and nothing else is touched.
# image: qcow2
from kit import *

h = connect([BASE])
h.trim(65536, 0)
assert status(h, 65536, 0)[BASE][0] == (65536, HOLE | ZERO)
assert h.pread(65536, 0) == bytes(65536)
h.trim(65536 + 4096, 2 * QUARTER)
assert status(h, 65536, 2 * QUARTER)[BASE][0] == (65536, HOLE | ZERO)
rest = h.pread(4096, 2 * QUARTER + 65536)
assert rest in (bytes(4096), content(2 * QUARTER + 65536, 4096))
h.trim(1, 200000)
assert h.pread(1, 200000) in (b"\0", content(200000, 1))
h.trim(QUARTER, QUARTER)
got = bytearray(h.pread(SIZE, 0))
want = bytearray(content(0, SIZE))
for offset, count in ((0, 65536), (2 * QUARTER, 65536 + 4096), (200000, 1)):
    got[offset : offset + count] = want[offset : offset + count] = bytes(count)
assert same(bytes(got), bytes(want))
