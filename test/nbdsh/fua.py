# FUA is taken with every command, and those that change something do it.
# image: qcow2
from kit import *

FUA = nbd.CMD_FLAG_FUA
for structured in DIALECTS:
    h = connect([BASE] if structured else [], structured=structured, strict=False)
    h.pwrite(b"x" * 4096, 0, FUA)
    assert h.pread(4096, 0, FUA) == b"x" * 4096
    h.zero(4096, 0, FUA)
    assert h.pread(4096, 0) == bytes(4096)
    h.zero(65536, 65536, FUA | nbd.CMD_FLAG_NO_HOLE)
    h.trim(65536, 2 * QUARTER, FUA)
    h.flush(FUA)
    h.cache(4096, 0, FUA)
    if structured:
        status(h, SIZE, 0, FUA)
        status(h, SIZE, 0, FUA | nbd.CMD_FLAG_REQ_ONE)
        assert h.pread(4096, 0, FUA | nbd.CMD_FLAG_DF) == bytes(4096)
    h.pwrite(content(0, SIZE), 0, FUA)
    alive(h)
