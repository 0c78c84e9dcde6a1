# TRIM of a whole image, and of more than a payload may have.
# image: wide
from kit import *

h = connect([BASE])
h.pwrite(b"z" * 65536, 3 * GIB)
h.pwrite(b"z" * 65536, 5 * GIB)
h.trim(4 * GIB - 65536, 0)
assert mapped(h, BASE, 4 * GIB) == [(4 * GIB, HOLE | ZERO)]
assert h.pread(65536, 5 * GIB) == b"z" * 65536
