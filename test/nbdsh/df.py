# READ with DF: one content chunk, zeros and all.
# image: qcow2
from kit import *

h = connect()
for offset, count in ((0, 65536), (QUARTER - 32768, 65536), (QUARTER, 65536), (2 * QUARTER - 1, 65536), (1, 1), (0, SIZE)):
    seen = []

    def chunk(buf, at, kind, error):
        assert error.value == 0
        seen.append((at, len(buf), kind))

    assert same(h.pread_structured(count, offset, chunk, nbd.CMD_FLAG_DF), content(offset, count))
    assert [s[:2] for s in seen] == [(offset, count)], seen
    assert seen[0][2] == nbd.READ_DATA or not any(content(offset, count)), seen
