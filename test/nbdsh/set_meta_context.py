# SET_META_CONTEXT: what is known is agreed on, what is not is passed over, and a namespace selects nothing.
# image: qcow2
from kit import *

for asked, want in (
    ([BASE], [BASE]),
    ([DEPTH], [DEPTH]),
    ([BASE, DEPTH], [BASE, DEPTH]),
    ([DEPTH, BASE], [BASE, DEPTH]),
    (["x-unknown:context", BASE], [BASE]),
    (["qemu:dirty-bitmap:missing", DEPTH], [DEPTH]),
    (["base:", "qemu:"], []),
    (["x-unknown:context"], []),
):
    h = connect(asked)
    assert [c for c in (BASE, DEPTH) if h.can_meta_context(c)] == want, (asked, want)
    assert not h.can_meta_context("x-unknown:context")
    if want:
        assert sorted(status(h, SIZE, 0)) == sorted(want)
    alive(h)
    h.shutdown()
