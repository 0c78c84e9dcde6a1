# GO: a missing export is an error, and the connection stays usable.
# image: raw
from kit import *

h = connect(options=True)
for name in ("missing", EXPORT + "x", EXPORT[:-1], "../" + EXPORT, "/etc/passwd", "x" * 4096, "\u00e4\u20ac", "a b", ""):
    h.set_export_name(name)
    refused(h.opt_go)
    assert h.aio_is_negotiating(), (name, h.connection_state())
h.set_export_name(EXPORT)
h.opt_go()
alive(h)
