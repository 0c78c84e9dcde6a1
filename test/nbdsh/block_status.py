# BLOCK_STATUS of base:allocation: the map as it is, from any offset, in any steps.
# image: qcow2
from kit import *

h = connect([BASE])
DATA, NONE = 0, HOLE | ZERO
want = [(QUARTER, DATA), (QUARTER, NONE)] * 2
assert mapped(h, BASE) == want, mapped(h, BASE)
for step in (1, 512, 65536, 100001, QUARTER - 1, SIZE):
    if step == 1:
        assert mapped(h, BASE, 3, QUARTER - 1, step) == [(1, DATA), (2, NONE)]
    else:
        assert mapped(h, BASE, step=max(step, 4096)) == want, step
assert mapped(h, BASE, 2 * QUARTER, QUARTER // 2) == [(QUARTER // 2, DATA), (QUARTER, NONE), (QUARTER // 2, DATA)]
assert mapped(h, BASE, 2, SIZE - 2) == [(2, NONE)]
for offset in (1, 513, QUARTER - 1, QUARTER + 1, SIZE - 1):
    n, said = status(h, 1, offset)[BASE][0]
    assert n >= 1 and said == (NONE if offset // QUARTER % 2 else DATA), (offset, n, said)
h.pwrite(b"b" * 65536, QUARTER + 65536)
assert mapped(h, BASE, QUARTER, QUARTER) == [(65536, NONE), (65536, DATA), (2 * 65536, NONE)]
