# Requests in parallel on one connection, of all sizes: each reply has its own data.
# image: qcow2
from kit import *

for structured in DIALECTS:
    h = connect([BASE] if structured else [], structured=structured)
    flight, reads = Flight(h), []
    for i in range(300):
        count = (1, 512, 4096, 65536, QUARTER)[i % 5]
        offset = i * 7919 * 13 % (SIZE - count)
        buf = nbd.Buffer(count)
        reads.append((buf, offset, count))
        flight.send(i, h.aio_pread, buf, offset)
        if structured and i % 10 == 0:
            flight.send(("status", i), h.aio_block_status, SIZE, 0, lambda *_: 0)
    flight.land()
    for buf, offset, count in reads:
        assert same(bytes(buf.to_bytearray()), content(offset, count)), (offset, count)
