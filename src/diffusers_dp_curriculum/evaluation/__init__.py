"""Evaluates synthetic images: fidelity, utility and copies. All of it is computed from real records, so not private.

`fidelity` compares features of synthetic and real images; `utility` trains classifiers on synthetic images and tests
them on real ones; `nearest` measures how close samples come to training images; `metrics` computes all of these, and
`report` writes them down.
"""
