# BLOCK_STATUS of a plain file: data where there is some; what it says is zero, is.
# image: raw
from kit import *

h = connect([BASE, DEPTH])
offset = 0
for n, said in mapped(h, BASE):
    assert not said & HOLE or said & ZERO
    assert not said & ZERO or h.pread(n, offset) == bytes(n)
    offset += n
assert offset == SIZE
assert not mapped(h, BASE, QUARTER)[0][1] & ZERO
assert sum(n for n, _ in mapped(h, DEPTH)) == SIZE
