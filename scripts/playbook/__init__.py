"""What runs on the host: plan a run, start it, follow it, compare records. No torch here.

Schemas, model defaults and tables stand once, in `assets/pretraining`; importing this package makes them importable.
"""

import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent.parent
ASSETS = PROJECT / "assets"

if str(ASSETS) not in sys.path:
    sys.path.insert(0, str(ASSETS))
