# DF without structured replies is a flag that does not apply.
# image: raw
from kit import *

h = connect(structured=False, strict=False)
fails(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_DF)
alive(h)
