# WRITE_ZEROES of more than a payload may have.
# image: wide
from kit import *

h = connect([BASE])
h.pwrite(b"z" * 65536, 3 * GIB)
h.pwrite(b"z" * 65536, 5 * GIB)
h.zero(4 * GIB - 65536, 0)
assert h.pread(65536, 3 * GIB) == bytes(65536)
assert all(flags & ZERO for _, flags in mapped(h, BASE, 4 * GIB))
assert h.pread(65536, 5 * GIB) == b"z" * 65536
