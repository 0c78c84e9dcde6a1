# Requests for nothing: whatever the answer is, the connection goes on.
# image: qcow2
from kit import *

for structured in DIALECTS:
    h = connect([BASE] if structured else [], structured=structured, strict=False)
    calls = [
        lambda at: h.pread(0, at),
        lambda at: h.pwrite(b"", at),
        lambda at: h.trim(0, at),
        lambda at: h.zero(0, at),
        lambda at: h.cache(0, at),
    ]
    if structured:
        calls.append(lambda at: h.pread(0, at, nbd.CMD_FLAG_DF))
        calls.append(lambda at: h.block_status(0, at, lambda *_: 0))
        calls.append(lambda at: h.block_status(0, at, lambda *_: 0, nbd.CMD_FLAG_REQ_ONE))
    for call in calls:
        for at in (0, 1, QUARTER, SIZE, SIZE + 1, 1 << 63, (1 << 64) - 1):
            try:
                call(at)
            except nbd.Error as e:
                assert "command failed" in e.string and e.errnum in (errno.EINVAL, errno.ENOSPC), e
        alive(h)
