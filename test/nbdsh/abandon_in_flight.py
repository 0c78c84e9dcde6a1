# A client that goes without a word, with requests under way: others are served as before.
# image: qcow2
from kit import *

for _ in range(4):
    h = connect()
    for i in range(60):
        h.aio_pread(nbd.Buffer(QUARTER), 2 * QUARTER)
        h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(content(0, QUARTER))), 0)
    del h  # closes the socket
    alive(connect())
