# The flags of an export that cannot be written to.
# image: readonly
from kit import *

for structured in DIALECTS:
    h = connect(structured=structured)
    assert h.is_read_only()
    assert not h.can_trim() and not h.can_zero() and not h.can_fast_zero()
    assert h.can_cache() and h.can_multi_conn()
    assert h.can_df() == structured
    alive(h)
