# WRITE_ZEROES with FAST_ZERO on a plain file: as it is on others, and without it there is no ENOTSUP.
# image: raw
from kit import *

h = connect([BASE])
model = bytearray(content(0, SIZE))
outcomes = {}
for offset, count in ((0, 65536), (65536 + 512, 512), (QUARTER, 65536), (QUARTER - 65536, 131072), (2 * QUARTER + 1, 1), (3 * QUARTER, QUARTER), (0, SIZE)):
    for flags in (nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_FUA):
        try:
            h.zero(count, offset, flags)
            model[offset : offset + count] = bytes(count)
            outcomes[offset, count, flags] = True
            if flags & nbd.CMD_FLAG_NO_HOLE:
                assert not any(said & HOLE for _, said in mapped(h, BASE, count, offset)), (offset, count)
        except nbd.Error as e:
            assert e.errnum == errno.ENOTSUP and "command failed" in e.string, e
            outcomes[offset, count, flags] = False
        assert same(h.pread(SIZE, 0), bytes(model)), (offset, count, flags)
h.pwrite(content(0, SIZE), 0)
h.zero(SIZE - 2, 1)
assert same(h.pread(SIZE, 0), content(0, 1) + bytes(SIZE - 1))
