# The flags of an export that can be written to.
# image: qcow2
from kit import *

for structured in DIALECTS:
    h = connect(structured=structured)
    assert not h.is_read_only() and not h.is_rotational()
    assert h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero() and h.can_fast_zero() and h.can_cache()
    assert h.can_multi_conn()
    assert h.can_df() == structured
