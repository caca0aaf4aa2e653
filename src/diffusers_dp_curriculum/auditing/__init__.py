"""Attacks on the mechanisms, and the epsilon that their success proves."""
