# BLOCK_STATUS with REQ_ONE: one descriptor a context, no longer than asked for.
# image: chain
from kit import *

ONE = nbd.CMD_FLAG_REQ_ONE
h = connect([BASE, DEPTH])
for offset, count in ((0, SIZE), (0, 1), (1, 4096), (QUARTER - 1, 2), (QUARTER, SIZE - QUARTER), (SIZE - 1, 1), (100, 100)):
    said = status(h, count, offset, ONE)
    assert sorted(said) == [BASE, DEPTH]
assert status(h, SIZE, 0, ONE)[BASE] == [(QUARTER, 0)]
assert status(h, SIZE - QUARTER, QUARTER, ONE)[BASE] == [(QUARTER, HOLE | ZERO)]
for context in (BASE, DEPTH):
    assert mapped(h, context, flags=ONE) == mapped(h, context)
