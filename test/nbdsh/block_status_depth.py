# BLOCK_STATUS of qemu:allocation-depth: which layer supplies the bytes; both contexts in one reply.
# image: chain
from kit import *

h = connect([DEPTH, BASE])
both = status(h, SIZE, 0)
assert sorted(both) == [BASE, DEPTH], both
assert mapped(h, DEPTH) == [(QUARTER, 2), (QUARTER, 0), (QUARTER, 1), (QUARTER, 0)], mapped(h, DEPTH)
assert mapped(h, BASE) == [(QUARTER, 0), (QUARTER, HOLE | ZERO)] * 2, mapped(h, BASE)
alive(h)
h.pwrite(b"c" * 65536, 65536)
assert mapped(h, DEPTH, QUARTER) == [(65536, 2), (65536, 1), (2 * 65536, 2)], mapped(h, DEPTH, QUARTER)
