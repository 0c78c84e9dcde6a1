# Bad requests among good ones on one connection: each gets its own answer.
# image: qcow2
from kit import *

for structured in DIALECTS:
    h = connect(structured=structured, strict=False)
    got = {}

    def send(name, call, *args, **kwargs):
        def done(error):
            got[name] = error.value
            return 1

        call(*args, completion=done, **kwargs)

    buffers = []
    for i in range(50):
        buffers.append(nbd.Buffer(4096))
        send((0, i), h.aio_pread, buffers[i], i * 4096)
        send((errno.EINVAL, i, "read"), h.aio_pread, nbd.Buffer(4096), SIZE - 1)
        send((errno.ENOSPC, i, "write"), h.aio_pwrite, nbd.Buffer.from_bytearray(bytearray(4097 * (i + 1))), SIZE)
        send((errno.EINVAL, i, "flags"), h.aio_pwrite, nbd.Buffer.from_bytearray(bytearray(70000)), 0, flags=1 << 9)
        send((0, i, "write"), h.aio_pwrite, nbd.Buffer.from_bytearray(bytearray(content(i * 4096, 4096))), i * 4096)
    while h.aio_in_flight() > 0:
        h.poll(-1)
    assert len(got) == 250 and all(error == name[0] for name, error in got.items()), got
    for i, b in enumerate(buffers):
        assert same(bytes(b.to_bytearray()), content(i * 4096, 4096))
    alive(h)
