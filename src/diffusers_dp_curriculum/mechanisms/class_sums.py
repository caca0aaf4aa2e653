"""Sums over units of privacy, of which each moves the result by a bounded amount, whatever its records are.

A query adds up one vector of whole numbers for each record, in the rows of the record's class. A user adds the mean of
its records' vectors. That is a convex combination of what single records add, so that the sensitivity is the same. All
numbers are multiples of powers of two that float64 adds up exactly: zeroing out a unit changes the sums by its own
contribution and by nothing else.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F

from ..data.image_dataset import ImageDataset


# Means over the records of a user are truncated to multiples of this, towards zero, which makes no number larger.
QUANTUM = 2.0**-20


def class_sums(
    records: ImageDataset,
    units: torch.Tensor,
    vectors_of: Callable[[torch.Tensor], torch.Tensor],
    width: int,
    values_at_once: int,
    quantum: float = QUANTUM,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Add up the vectors of some units' records by class.

    Args:
        records (`ImageDataset`): The sensitive records.
        units (`torch.Tensor`): The numbers of the units that take part, int64.
        vectors_of (`Callable`):
            Called with `uint8` images of shape `(n, channels, height, width)`, returns whole numbers in float64 of
            shape `(n, width)`, which follow for each image from that image alone.
        width (`int`): The length of a vector.
        values_at_once (`int`): Values that are in memory in float64 at a time.
        quantum (`float`, *optional*, defaults to `QUANTUM`): A power of two of at most 1, of which means of vectors are
            multiples.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The sums, `(classes, width)`, and the number of units of each class,
        `(classes, 1)`, where a user with records in several classes is divided among them; both in float64.
    """
    classes = records.info.num_labels
    sums = torch.zeros(classes, width, dtype=torch.float64)
    counts = torch.zeros(classes, 1, dtype=torch.float64)
    for vectors, numbers, labels, sizes in _parts(records, units, vectors_of, width, values_at_once):
        one_hot = F.one_hot(labels, classes).double().T
        sums += one_hot @ _mean(vectors, sizes, quantum)
        counts += one_hot @ _mean(numbers, sizes, QUANTUM)
    return sums, counts


def _parts(
    records: ImageDataset,
    units: torch.Tensor,
    vectors_of: Callable[[torch.Tensor], torch.Tensor],
    width: int,
    values_at_once: int,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Yield the parts of units, which are a unit's records of one class, many at a time.

    For n parts these are the sums of their records' vectors, `(n, width)`, their numbers of records, `(n, 1)`, their
    classes, `(n,)`, and the numbers of records of their units, `(n, 1)`.
    """
    index, places = records.units.records_of(units)
    if len(index) == 0:
        return
    keys = places * records.info.num_labels + records.labels[index]
    keys, order = keys.sort(stable=True)
    index = index[order]
    part_keys, part_of, numbers = keys.unique_consecutive(return_inverse=True, return_counts=True)
    labels = part_keys % records.info.num_labels
    sizes = records.units.sizes[units[part_keys.div(records.info.num_labels, rounding_mode="floor")]]
    last_of_part = numbers.cumsum(0) - 1
    begun = torch.zeros(width, dtype=torch.float64)  # the sum of a part whose last records are in the next piece
    for piece in torch.arange(len(index)).split(max(values_at_once // max(width, _pixels(records)), 1)):
        first, last = int(part_of[piece[0]]), int(part_of[piece[-1]])
        vectors = torch.zeros(last - first + 1, width, dtype=torch.float64)
        vectors.index_add_(0, part_of[piece] - first, vectors_of(records.images[index[piece]]))
        vectors[0] += begun
        is_whole = piece[-1] == last_of_part[last]
        begun = torch.zeros_like(begun) if is_whole else vectors[-1]
        parts = slice(first, last + 1 if is_whole else last)
        yield vectors[: parts.stop - first], numbers[parts, None], labels[parts], sizes[parts, None]


def _pixels(records: ImageDataset) -> int:
    return records.images.shape[1:].numel()


def _mean(sums: torch.Tensor, sizes: torch.Tensor, quantum: float) -> torch.Tensor:
    """Whole numbers over numbers of records, truncated towards zero to multiples of the quantum, without rounding."""
    if (sizes == 1).all():
        return sums.double()
    return (sums.long() * round(1 / quantum)).div(sizes, rounding_mode="trunc").double() * quantum
