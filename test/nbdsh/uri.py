# The URI that the server prints leads to it; an export's name is its path.
# image: raw
from kit import *

base, _, query = URI.partition("?")
h = nbd.NBD()
h.connect_uri(base.removesuffix("/") + "/" + EXPORT + (query and "?" + query))
assert h.get_export_name() == EXPORT
alive(h)
