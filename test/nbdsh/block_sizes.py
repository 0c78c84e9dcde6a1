# The block sizes are those of the graph.
# image: policy
from kit import *

h = connect()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 4096
assert h.get_block_size(nbd.SIZE_PREFERRED) == 64 * KIB
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 128 * KIB
