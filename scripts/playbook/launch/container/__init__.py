"""The container runtime: NVIDIA's NeMo image, whose tag stands here, by the Docker SDK.

May import what `launch` may.
"""

REPOSITORY = "nvcr.io/nvidia/nemo"
DEFAULT_TAG = "26.04"  # docker/Dockerfile and cluster.example.yaml say the same
