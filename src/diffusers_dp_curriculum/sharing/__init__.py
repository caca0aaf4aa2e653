"""What is published: cards, artifacts and the Hub. Post-processing."""
