# LIST: each export once, with what it is; as often as it is asked.
# image: raw
from kit import *

h = connect(options=True)
for _ in range(2):
    found = {}

    def export(name, description):
        assert name not in found
        found[name] = description

    assert h.opt_list(export) == len(EXPORTS)
    assert sorted(found) == sorted(EXPORTS), found
    assert "raw" in found[EXPORT], found[EXPORT]
    assert all(found.values()), found
h.opt_go()
alive(h)
