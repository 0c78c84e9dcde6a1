# WRITE_ZEROES with NO_HOLE on a plain file.
# image: raw
from kit import *

h = connect([BASE])
h.zero(SIZE, 0, nbd.CMD_FLAG_NO_HOLE)
assert h.pread(SIZE, 0) == bytes(SIZE)
assert not any(flags & HOLE for _, flags in mapped(h, BASE)), mapped(h, BASE)
