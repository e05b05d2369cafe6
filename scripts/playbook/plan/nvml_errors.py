"""What NVML's errors mean, and what to do about each."""

import pynvml

INSTALL = "install the driver (Ubuntu: sudo ubuntu-drivers install), restart, and see that `nvidia-smi` lists the GPU"
RESTART = "restart the machine"
LOG = "sudo dmesg | grep -iE 'nvrm|xid' says why"

# What it means; what to do.
_ERRORS = {
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "this user may not open its devices",
        "`ls -l /dev/nvidia*` shows who may: join that group (often video or render: sudo usermod -aG video $USER), "
        "then log out and in again; in a container, have it started with the GPU",
    ),
    pynvml.NVML_ERROR_INSUFFICIENT_POWER: (
        "it gets too little power",
        "connect its power cables, then start the machine again",
    ),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "its driver is not loaded",
        f"sudo modprobe nvidia, which says why where it fails (a new kernel, Secure Boot); else {INSTALL}",
    ),
    pynvml.NVML_ERROR_IRQ_ISSUE: ("its interrupts do not arrive", f"{LOG}; {RESTART}"),
    pynvml.NVML_ERROR_TIMEOUT: ("its driver did not answer in time", f"{LOG}; {RESTART}"),
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: (
        "its driver is not installed",
        f"{INSTALL}; in a container, have it started with the GPU",
    ),
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: ("its driver is too old", "install a newer one, restart"),
    pynvml.NVML_ERROR_CORRUPTED_INFOROM: (
        "its own memory of settings (infoROM) is damaged",
        "nvidia-smi -q shows it; the maker of the machine mends it",
    ),
    pynvml.NVML_ERROR_GPU_IS_LOST: (
        "it fell off the bus",
        f"{LOG}; {RESTART}, and where it comes again look at its seat, power and cooling",
    ),
    pynvml.NVML_ERROR_RESET_REQUIRED: ("it has to be reset", f"sudo nvidia-smi --gpu-reset, or {RESTART}"),
    pynvml.NVML_ERROR_OPERATING_SYSTEM: (
        "the operating system keeps the driver from it",
        f"in a container, have that started again with the GPU; else {LOG}",
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "the NVIDIA driver was updated and its old kernel module is still loaded",
        RESTART,
    ),
    pynvml.NVML_ERROR_UNKNOWN: (
        "its driver has no more to say than an unknown error",
        "in a container, restart that (systemctl daemon-reload on its host takes a running container's GPUs away); "
        f"else {LOG}, and {RESTART}",
    ),
}
# What a machine without a GPU may say, too.
_WITHOUT_A_GPU = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_OPERATING_SYSTEM,
    pynvml.NVML_ERROR_UNKNOWN,
}


def explain(error: Exception) -> tuple[str, str]:
    """What an NVMLError means, with the driver's own words, and what to do."""
    unknown = ("its driver does not answer", f"{LOG}; {INSTALL}")
    cause, remedy = _ERRORS.get(getattr(error, "value", None), unknown)
    return f"{cause} ({error})", remedy


def proves_a_gpu(error: Exception) -> bool:
    """Whether only a machine with an NVIDIA GPU gives this error."""
    return getattr(error, "value", None) in _ERRORS.keys() - _WITHOUT_A_GPU
