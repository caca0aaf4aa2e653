"""Publishes the results of a run: cards, files and pushes to the Hub. Post-processing."""
