# INFO: size, flags, block sizes, name and description; the same as of GO, as often as it is asked.
# image: qcow2
from kit import *


def known(h):
    return (
        h.get_size(),
        h.is_read_only(),
        [h.get_block_size(s) for s in (nbd.SIZE_MINIMUM, nbd.SIZE_PREFERRED, nbd.SIZE_MAXIMUM)],
        [h.can_flush(), h.can_fua(), h.can_trim(), h.can_zero(), h.can_fast_zero(), h.can_df(), h.can_cache(), h.can_multi_conn()],
    )


h = handle(options=True)
h.set_full_info(True)
join(h)
h.opt_info()
first = known(h)
assert first[0] == SIZE and not first[1]
minimum, preferred, most = first[2]
assert minimum == 1 and preferred >= 4096 and preferred & preferred - 1 == 0 and most >= 32 * MIB, first
assert h.get_canonical_export_name() == EXPORT
assert "qcow2" in h.get_export_description()
for _ in range(3):
    h.set_export_name("missing")
    refused(h.opt_info)
    h.set_export_name(EXPORT)
    h.opt_info()
    assert known(h) == first
h.opt_go()
assert known(h) == first
assert h.get_canonical_export_name() == EXPORT and "qcow2" in h.get_export_description()
alive(h)
