"""Is it any good? Fidelity, utility, and a look for copies; every figure here reads real records, and is not private.

`fidelity` compares features of synthetic and real images, `utility` classifiers trained on the one and tested on the
other, `nearest` asks how close samples come to training images, and `report` does it all and writes it down.
"""
