# ABORT ends the negotiation cleanly, whatever came before.
# image: raw
from kit import *

for before in ([], ["opt_info"], ["opt_info", "opt_info"]):
    h = connect(options=True)
    for call in before:
        getattr(h, call)()
    h.opt_abort()
    assert h.aio_is_closed(), h.connection_state()
