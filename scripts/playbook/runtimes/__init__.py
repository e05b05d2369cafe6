"""Where a training can run. Each runtime turns a plan into a command; `playbook.launch` runs and watches it."""
