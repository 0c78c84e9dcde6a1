# BLOCK_STATUS of as much as 32 bits can ask for, in an image of a TiB.
# image: wide
from kit import *

h = connect([BASE])
assert h.get_size() == TIB
h.pwrite(b"d" * 65536, 700 * GIB)
most = 4 * GIB - 65536
assert mapped(h, BASE, step=most) == [(700 * GIB, HOLE | ZERO), (65536, 0), (TIB - 700 * GIB - 65536, HOLE | ZERO)]
(n, said), = status(h, most, 0)[BASE]
assert n >= most and said == HOLE | ZERO
assert status(h, 4 * GIB - 1, 0)[BASE][0][1] == HOLE | ZERO
