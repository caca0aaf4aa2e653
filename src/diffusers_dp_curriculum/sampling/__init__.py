"""Post-processing: sampling images from a trained network. The pipeline, previews and synthetic data sets."""
