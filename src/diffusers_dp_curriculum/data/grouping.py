"""The units of privacy of a data set: its records, or its users with all their records."""

from dataclasses import dataclass
from functools import cached_property

import torch

from ..errors import InputError
from ..units import RECORD, USER


@dataclass(frozen=True, eq=False, repr=False)  # without `repr`, so that printing it does not print who has which record
class Units:
    """What a mechanism samples and bounds: single records, or users, each of whom has one or several records.

    Args:
        num_records (`int`): The number of records.
        users (`torch.Tensor`, *optional*):
            The number of each record's user, as `ImageDataset.users`; None without users.

    Raises:
        InputError: If the users are not numbered from 0 on, or not those of the records.
    """

    num_records: int
    users: torch.Tensor | None = None

    def __post_init__(self) -> None:
        users = self.users
        if users is None:
            return
        if users.dtype != torch.int64 or users.shape != (self.num_records,):
            raise InputError(
                f"The users are {users.dtype} of shape {tuple(users.shape)}: make them int64, one for each image."
            )
        if not users.unique().equal(torch.arange(len(users.unique()))):
            raise InputError(
                "The numbers of the users leave some out: number them from 0 on, for instance by "
                "users.unique(return_inverse=True)."
            )

    def __len__(self) -> int:
        return self.num_records if self.users is None else len(self.sizes)

    @property
    def name(self) -> str:
        """`str`: `"record"` or `"user"`."""
        return RECORD if self.users is None else USER

    @cached_property
    def sizes(self) -> torch.Tensor:
        """`torch.Tensor`: The number of records of each unit, int64."""
        if self.users is None:
            return torch.ones(self.num_records, dtype=torch.int64)
        return torch.bincount(self.users)

    @cached_property
    def _by_user(self) -> torch.Tensor:
        """All records, those of the first user first."""
        assert self.users is not None
        return self.users.argsort(stable=True)

    @cached_property
    def _starts(self) -> torch.Tensor:
        """Where the records of each user begin in `_by_user`."""
        return self.sizes.cumsum(0) - self.sizes

    def records_of(self, units: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """All records of some units.

        Args:
            units (`torch.Tensor`): The numbers of n units, `(n,)` int64.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: The indices of the records, and for each of them the place of its unit
            in `units`, in ascending order.
        """
        places = torch.arange(len(units))
        if self.users is None:
            return units, places
        sizes = self.sizes[units]
        places = places.repeat_interleave(sizes)
        within = torch.arange(len(places)) - (sizes.cumsum(0) - sizes)[places]
        return self._by_user[self._starts[units][places] + within], places

    def draw(self, units: torch.Tensor, count: int) -> torch.Tensor:
        """Choose records of each unit, spread evenly over all that it has, by PyTorch's global generator.

        A unit with r records gives each of them `count` / r times on average: the numbers of times differ by one at
        most, and chance decides which records are chosen more often.

        Args:
            units (`torch.Tensor`): The numbers of n units, `(n,)` int64.
            count (`int`): The number of choices for each unit.

        Returns:
            `torch.Tensor`: Indices of records, `(n, count)` int64.
        """
        records, places = self.records_of(units)
        sizes = self.sizes[units]
        several = (sizes > 1)[places]
        # Sorting by random numbers shuffles the records of each unit. A single record needs none.
        order = torch.zeros(len(records), dtype=torch.float64)
        order[several] = torch.rand(int(several.sum()), dtype=torch.float64)
        shuffled = records[(places + order).argsort(stable=True)]
        starts = sizes.cumsum(0) - sizes
        return shuffled[starts[:, None] + torch.arange(count) % sizes[:, None]]
