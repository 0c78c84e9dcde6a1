# Multi-conn: what was answered on one connection is seen on all, and a flush of one covers it.
# image: qcow2
from kit import *

all_ = [connect(structured=i % 2 == 0) for i in range(8)]
assert all(h.can_multi_conn() for h in all_)
for i, h in enumerate(all_):
    data = bytes([i + 1]) * 65536
    h.pwrite(data, i * 65536 + 100)
    all_[i - 1].flush()
    for other in all_:
        assert same(other.pread(65536, i * 65536 + 100), data)
all_[3].zero(SIZE, 0)
all_[4].flush()
for h in all_:
    assert h.pread(SIZE, 0) == bytes(SIZE)
