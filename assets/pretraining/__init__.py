"""What runs where training runs: recipes, precisions, telemetry, numerics.

Nothing here imports from `scripts/`. Modules without a heavy import at their top (`record`, `models`,
`precision`) are also read by the host, so that each schema, default and table stands in one place.
"""
