# All commands in parallel on several connections, each in a region of its own.
# image: qcow2
from kit import *

REGION = SIZE // 4
flights = []
for c in range(4):
    h = connect([BASE] if c % 2 else [], structured=c % 2 == 1)
    flights.append(Flight(h))
models = []
for round_ in range(6):
    for c, f in enumerate(flights):
        base = c * REGION
        for i in range(16):
            at, n = base + i * 16384, 16384
            data = bytes([1 + round_ * 16 + i]) * (n - 100)
            f.send(("write", i), f.h.aio_pwrite, nbd.Buffer.from_bytearray(bytearray(data)), at + 50)
            f.send(("read", i), f.h.aio_pread, nbd.Buffer(n), at)
            f.send(("cache", i), f.h.aio_cache, n, at)
        f.send("flush", f.h.aio_flush)
    for f in flights:
        f.land()
    for c, f in enumerate(flights):
        for i in range(16):
            if (i + round_) % 3 == 0:
                f.send(("zero", i), f.h.aio_zero, 16384, c * REGION + i * 16384)
            elif (i + round_) % 3 == 1:
                f.send(("trim", i), f.h.aio_trim, 100, c * REGION + i * 16384 + 60)
    for f in flights:
        f.land()
    got = flights[0].h.pread(SIZE, 0)
    for c in range(4):
        for i in range(16):
            part = got[c * REGION + i * 16384 :][:16384]
            stamp = bytes([1 + round_ * 16 + i])
            if (i + round_) % 3 == 0:
                assert part == bytes(16384), (round_, c, i)
                continue
            body = part[50:-50]
            if (i + round_) % 3 == 1:
                assert body[10:110] in (bytes(100), stamp * 100)
                body = body[:10] + stamp * 100 + body[110:]
            assert same(body, stamp * 16284), (round_, c, i)
