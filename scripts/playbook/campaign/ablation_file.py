"""What an ablation leaves: the names of its files, and how they are told from somebody else's."""

from __future__ import annotations

FILE, MARKDOWN, PICTURE = "ablation.json", "ablation.md", "ablation.png"
KIND = "nvfp4-playbook-ablation"
SCHEMA = 2  # 1 had one ingredient that a row was without, in place of its recipe
