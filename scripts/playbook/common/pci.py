"""The PCI bus, which tells of a GPU without driver and without packages."""

import contextlib
from pathlib import Path

PCI_DEVICES = Path("/sys/bus/pci/devices")


def in_the_machine() -> bool:
    """Whether the PCI bus has an NVIDIA GPU, driver or not."""
    for device in PCI_DEVICES.glob("*"):
        with contextlib.suppress(OSError):
            vendor, kind = (device / "vendor").read_text().strip(), (device / "class").read_text().strip()
            if vendor == "0x10de" and kind.startswith("0x03"):  # NVIDIA; a display controller
                return True
    return False
