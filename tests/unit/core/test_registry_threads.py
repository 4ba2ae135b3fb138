"""Names of plug-ins, looked up by several threads at a time."""

from __future__ import annotations

import sys
import threading

from inc_torch.core.registry import Registry


def test_threads_that_come_while_plug_ins_are_imported_see_all_of_them(tmp_path, monkeypatch):
    package = tmp_path / "slow_plugins"
    package.mkdir()
    (package / "__init__.py").write_text("from inc_torch.core.registry import Registry\nKINDS = Registry('kind')\n")
    for name in ("first", "second", "third"):
        lines = ["import time", "from slow_plugins import KINDS", "time.sleep(0.05)"]
        lines += [f"KINDS.register({name!r}, summary='one')(object())", "assert KINDS.names() is not None"]
        (package / f"{name}.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    import slow_plugins

    monkeypatch.setattr(slow_plugins.KINDS, "_package", "slow_plugins")
    assert isinstance(slow_plugins.KINDS, Registry)
    seen, start = [], threading.Barrier(4)

    def look():
        start.wait(10)
        seen.append(slow_plugins.KINDS.names())

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for name in [name for name in sys.modules if name.startswith("slow_plugins")]:
        monkeypatch.delitem(sys.modules, name)
    assert seen == [["first", "second", "third"]] * 4
