# FLUSH of what cannot be written to has nothing to do.
# image: readonly
from kit import *

h = connect(strict=False)
h.flush()
alive(h)
