"""``python -m inc_torch.cli`` is ``inc-torch``, where scripts are not on the path."""

from __future__ import annotations

from inc_torch.cli import main

if __name__ == "__main__":
    main()
