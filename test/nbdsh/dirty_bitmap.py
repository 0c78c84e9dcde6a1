# BLOCK_STATUS of qemu:dirty-bitmap: several bitmaps at a time, listed by name and namespace; what is written is dirty, and stays so in steps of any length.
# image: bitmaps
from kit import *

FROZEN, LIVE, PREFIX = "qemu:dirty-bitmap:frozen", "qemu:dirty-bitmap:live", "qemu:dirty-bitmap:"

h = connect(options=True)
for queries, want in {
    (): [BASE, DEPTH, FROZEN, LIVE],
    ("qemu:",): [DEPTH, FROZEN, LIVE],
    (PREFIX,): [FROZEN, LIVE],
    (LIVE,): [LIVE],
    (PREFIX + "froze",): [],
}.items():
    h.clear_meta_contexts()
    for q in queries:
        h.add_meta_context(q)
    found = []
    h.opt_list_meta_context(found.append)
    assert sorted(found) == sorted(want), (queries, found)
h.opt_abort()

h = connect([BASE, FROZEN, LIVE, PREFIX + "missing"])
assert [h.can_meta_context(c) for c in (BASE, DEPTH, FROZEN, LIVE, PREFIX + "missing")] == [True, False, True, True, False]
assert mapped(h, FROZEN) == [(65536, 1), (QUARTER - 65536, 0), (65536, 1), (SIZE - QUARTER - 65536, 0)], mapped(h, FROZEN)
assert mapped(h, LIVE) == [(SIZE, 0)], mapped(h, LIVE)
h.pwrite(b"x", 1000)
h.zero(512, 2 * QUARTER)
h.trim(65536, 2 * QUARTER + 65536)
want = [(512, 0), (512, 1), (2 * QUARTER - 1024, 0), (512, 1), (65536 - 512, 0), (65536, 1), (SIZE - 2 * QUARTER - 2 * 65536, 0)]
assert mapped(h, LIVE) == want, mapped(h, LIVE)
for step in (512, 65536, 100001, SIZE):
    assert mapped(h, LIVE, step=max(step, 4096)) == want, step
assert mapped(h, FROZEN, 65536, 32768) == [(32768, 1), (32768, 0)]
for offset in (0, 511, 512, 1023, 1024):
    assert status(h, 1, offset, nbd.CMD_FLAG_REQ_ONE)[LIVE] == [(1, int(offset // 512 == 1))], offset
h.flush()
h.shutdown()
