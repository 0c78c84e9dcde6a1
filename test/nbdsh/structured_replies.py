# STRUCTURED_REPLY: agreed on where it is asked for; without it there is neither DF nor a metadata context.
# image: qcow2
from kit import *

h = connect([BASE])
assert h.get_structured_replies_negotiated() and h.can_df() and h.can_meta_context(BASE)
alive(h)
h = connect([BASE], structured=False)
assert not h.get_structured_replies_negotiated() and not h.can_df() and not h.can_meta_context(BASE)
alive(h)
