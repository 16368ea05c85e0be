"""The only place that imports Ray, MLflow and datasets."""
