# Who does not ask for block sizes and names gets the export all the same.
# image: raw
from kit import *

h = handle()
h.set_request_block_size(False)
h.set_full_info(False)
join(h)
assert h.get_size() == SIZE
alive(h)
