"""One thin script for each stage: `python -m pipelines.STAGE EXPERIMENT.toml`."""
