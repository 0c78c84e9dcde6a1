# BLOCK_STATUS without a metadata context that was agreed on.
# image: qcow2
from kit import *


def nothing(*args):
    raise AssertionError("there is a status")


for contexts, structured in (([], True), (["x-unknown:context"], True), ([], False), ([BASE], False)):
    h = connect(contexts, structured=structured, strict=False)
    for flags in (0, nbd.CMD_FLAG_REQ_ONE):
        fails(errno.EINVAL, h.block_status, 4096, 0, nothing, flags)
    alive(h)
