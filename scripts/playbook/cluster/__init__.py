"""Training on more than one machine: `cluster.yaml`, submitted by NeMo-Run, followed through Slurm's commands."""
