# FLUSH, with and without something to flush.
# image: qcow2
from kit import *

for structured in DIALECTS:
    h = connect(structured=structured)
    h.flush()
    h.pwrite(b"y" * 5000, QUARTER + 1)
    h.flush()
    h.flush()
    assert h.pread(5000, QUARTER + 1) == b"y" * 5000
h = connect()
flight = Flight(h)
for i in range(32):
    flight.send(f"write {i}", h.aio_pwrite, nbd.Buffer.from_bytearray(bytearray([i + 1]) * 4096), i * 4096)
    flight.send(f"flush {i}", h.aio_flush)
flight.land()
assert same(h.pread(32 * 4096, 0), b"".join(bytes([i + 1]) * 4096 for i in range(32)))
