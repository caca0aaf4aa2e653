"""From a trained network to images: the pipeline, previews and synthetic data sets. Post-processing."""
