# DISC: what is under way is finished and answered, reads and writes.
# image: qcow2
from kit import *

for structured in DIALECTS:
    h = connect(structured=structured)
    results, buffers = {}, {}

    def send(name, call, *args):
        def done(error):
            results[name] = error.value
            return 1

        call(*args, completion=done)

    for i in range(40):
        buffers[i] = nbd.Buffer(4096)
        send(("read", i), h.aio_pread, buffers[i], 2 * QUARTER + i * 4096)
        send(("write", i), h.aio_pwrite, nbd.Buffer.from_bytearray(bytearray([i + 1 + structured]) * 5000), i * 5000)
    h.aio_disconnect()
    while not (h.aio_is_closed() or h.aio_is_dead()):
        h.poll(-1)
    assert h.aio_is_closed(), h.connection_state()
    assert len(results) == 80 and not any(results.values()), results
    for i, b in buffers.items():
        assert same(bytes(b.to_bytearray()), content(2 * QUARTER + i * 4096, 4096))
    assert same(connect().pread(40 * 5000, 0), b"".join(bytes([i + 1 + structured]) * 5000 for i in range(40)))
