# Changes of a read-only export: EPERM, the payload is consumed, the connection goes on, and nothing changes.
# image: readonly
from kit import *

for structured in DIALECTS:
    h = connect([BASE] if structured else [], structured=structured, strict=False)
    for flags in (0, nbd.CMD_FLAG_FUA):
        for offset, count in ((0, 1), (0, SIZE), (QUARTER, 65536), (SIZE - 512, 512)):
            fails(errno.EPERM, h.pwrite, b"i" * count, offset, flags)
            fails(errno.EPERM, h.trim, count, offset, flags)
            fails(errno.EPERM, h.zero, count, offset, flags)
            fails(errno.EPERM, h.zero, count, offset, flags | nbd.CMD_FLAG_NO_HOLE)
    alive(h)
    h.cache(4096, 0)
    if structured:
        assert mapped(h, BASE) == [(QUARTER, 0), (QUARTER, HOLE | ZERO)] * 2
flight = Flight(h)
errors = []


def done(error):
    errors.append(error.value)
    return 1


for i in range(20):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(65536)), 0, completion=done)
    flight.send(i, h.aio_pread, nbd.Buffer(65536), i * 4096)
flight.land()
assert errors == [errno.EPERM] * 20, errors
alive(h)
