# The size is a multiple of the minimum: the tail that nobody could reach is not offered.
# image: tail
from kit import *

h = connect([BASE], strict=False)
assert h.get_block_size(nbd.SIZE_MINIMUM) == 4096
assert h.get_size() == SIZE
fails(errno.EINVAL, h.pread, 100, SIZE)
fails(errno.EINVAL, h.pread, 4096, SIZE)
fails(errno.ENOSPC, h.pwrite, bytes(4096), SIZE)
assert sum(n for n, _ in mapped(h, BASE)) == SIZE
alive(h)
