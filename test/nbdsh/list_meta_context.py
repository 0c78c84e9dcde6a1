# LIST_META_CONTEXT: without queries all, with a namespace all of it, and what is unknown is passed over.
# image: raw
from kit import *

h = connect(options=True)


def listed(*queries):
    h.clear_meta_contexts()
    for q in queries:
        h.add_meta_context(q)
    found = []
    assert h.opt_list_meta_context(found.append) == len(found)
    return sorted(found)


both = sorted((BASE, DEPTH))
for queries, want in {
    (): both,
    ("base:",): [BASE],
    ("qemu:",): [DEPTH],
    ("base:", "qemu:"): both,
    (BASE,): [BASE],
    (DEPTH,): [DEPTH],
    (BASE, BASE, "base:"): [BASE],
    ("base:nothing",): [],
    ("base:alloc",): [],
    ("base:allocation2",): [],
    ("BASE:ALLOCATION",): [],
    ("x-unknown:",): [],
    ("x-unknown:context", DEPTH): [DEPTH],
    ("qemu:dirty-bitmap:missing",): [],
    ("x-long:" + 4000 * "y", BASE): [BASE],
}.items():
    assert listed(*queries) == want, (queries, listed(*queries))
h.set_export_name("missing")
refused(listed)
h.set_export_name(EXPORT)
assert listed() == both
h.clear_meta_contexts()
h.opt_go()
alive(h)
