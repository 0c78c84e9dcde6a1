# Replies come as they are ready: a read overtakes a flush that takes long.
# image: slow
from kit import *

for structured in DIALECTS:
    h = connect(structured=structured)
    h.pwrite(content(0, 512), 0)
    flight = Flight(h)
    flight.send("flush", h.aio_flush)
    for i in range(8):
        flight.send(i, h.aio_pread, nbd.Buffer(512), i * 512)
    flight.land()
    assert flight.order[-1] == "flush" and len(flight.order) == 9, flight.order
