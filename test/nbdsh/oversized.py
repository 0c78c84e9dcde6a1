# 32 MiB is no abuse; more is EINVAL or EOVERFLOW, and its payload is consumed.
# image: wide
from kit import *

MOST = 32 * MIB
for structured in DIALECTS:
    h = connect(structured=structured, strict=False)
    assert h.get_block_size(nbd.SIZE_MAXIMUM) >= MOST
    most = h.get_block_size(nbd.SIZE_MAXIMUM)
    data = bytes(range(1, 251)) * (MOST // 250 + 1)
    h.pwrite(data[:MOST], 4096)
    assert same(h.pread(MOST, 4096), data[:MOST])
    for count in (most + 1, most + 4096, 2 * MOST):
        try:
            h.pread(count, 0)
            raise AssertionError("a read beyond the limit succeeded")
        except nbd.Error as e:
            assert "command failed" in e.string and e.errnum in (errno.EINVAL, errno.EOVERFLOW), e
        fails(errno.EINVAL, h.pwrite, bytes(count), 0)
        assert same(h.pread(4096, 4096), data[:4096])
