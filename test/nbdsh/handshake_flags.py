# Fixed newstyle and NO_ZEROES, each with the other and alone: data follows right after the handshake.
# image: raw
from kit import *

for flags in range(nbd.HANDSHAKE_FLAG_MASK + 1):
    h = handle()
    h.set_handshake_flags(flags)
    join(h)
    fixed = flags & nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE
    assert h.get_handshake_flags() == flags, flags
    assert h.get_protocol() == ("newstyle-fixed" if fixed else "newstyle"), h.get_protocol()
    assert h.get_structured_replies_negotiated() == bool(fixed)
    assert h.get_size() == SIZE
    alive(h)
    h.shutdown()
