# WRITE_ZEROES with FAST_ZERO: done at once, or ENOTSUP and nothing is changed.
# image: qcow2
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
assert outcomes[0, 65536, nbd.CMD_FLAG_FAST_ZERO], "a whole cluster is a matter of the map"
assert outcomes[3 * QUARTER, QUARTER, nbd.CMD_FLAG_FAST_ZERO], "what is zeros is done"
assert not outcomes[65536 + 512, 512, nbd.CMD_FLAG_FAST_ZERO], "a part of a cluster is written"
