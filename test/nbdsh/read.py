# READ of any range, with both kinds of replies.
# image: qcow2
from kit import *

edges = [0, 1, 511, 512, 4095, 4096, 65535, 65536, QUARTER - 1, QUARTER, QUARTER + 1, 2 * QUARTER - 3, 2 * QUARTER, SIZE - 1]
for structured in DIALECTS:
    h = connect(structured=structured)
    for offset in edges:
        for count in (1, 7, 512, 4096, 65537, QUARTER, QUARTER + 2, SIZE):
            count = min(count, SIZE - offset)
            assert same(h.pread(count, offset), content(offset, count)), (offset, count)
