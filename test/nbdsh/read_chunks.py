# A structured READ: chunks within the request that do not overlap and leave nothing out; holes are told.
# image: qcow2
from kit import *

h = connect()


def chunks(count, offset, flags=0):
    seen = []

    def chunk(buf, at, kind, error):
        assert error.value == 0 and kind in (nbd.READ_DATA, nbd.READ_HOLE), kind
        assert len(buf) > 0 and offset <= at and at + len(buf) <= offset + count, (at, len(buf))
        assert kind == nbd.READ_DATA or not any(buf)
        seen.append((at, len(buf), kind))

    assert same(h.pread_structured(count, offset, chunk, flags), content(offset, count))
    end = offset
    for at, n, _ in sorted(seen):
        assert at == end, seen
        end += n
    assert end == offset + count, seen
    return seen


holes = sum(n for _, n, kind in chunks(SIZE, 0) if kind == nbd.READ_HOLE)
assert holes == 2 * QUARTER, holes
assert [kind for _, _, kind in chunks(QUARTER, QUARTER)] == [nbd.READ_HOLE]
assert {kind for _, _, kind in chunks(QUARTER, 0)} == {nbd.READ_DATA}
for offset, count in ((1, SIZE - 2), (QUARTER - 1, 2), (QUARTER - 100, QUARTER + 200), (QUARTER + 5, 70000), (SIZE - 1, 1)):
    chunks(count, offset)
