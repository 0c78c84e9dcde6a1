# WRITE of any range: it reads back, and its neighbours are as they were.
# image: qcow2
from kit import *

model = bytearray(content(0, SIZE))
for structured in DIALECTS:
    h = connect(structured=structured)
    for i, (offset, count) in enumerate(((0, 1), (511, 2), (4096, 4096), (65535, 65538), (QUARTER + 7, 9), (QUARTER - 5, 70000), (SIZE - 1, 1))):
        data = bytes((i + j * 7 + structured) % 251 + 1 for j in range(count))
        h.pwrite(data, offset)
        model[offset : offset + count] = data
        assert same(h.pread(SIZE, 0), bytes(model)), (offset, count)
assert same(connect().pread(SIZE, 0), bytes(model))
