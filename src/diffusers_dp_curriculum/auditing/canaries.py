"""Canaries: units of privacy that are made to be recognised, of which a coin toss decides whether they are present."""

import secrets
from dataclasses import replace

import torch

from ..data.image_dataset import ImageDataset


RECORDS_OF_CANARY = 3  # of an image canary that is a user


class Canaries:
    """A data set of the records, then the image canaries, then the gradient canaries.

    An image canary is an image of noise. The pixels of a gradient canary are 0 or 255 at random, so that it adds as
    much as a record can to the mean of its class, in a direction of its own (less if the query pools images). In DP-SGD
    its gradient is chosen. All numbers are those of units of privacy.

    Args:
        records (`ImageDataset`): The records among which the canaries are placed.
        image_canaries (`int`): Number of image canaries. If `records` has users, each of them has several images.
        gradient_canaries (`int`): Number of gradient canaries.
    """

    def __init__(self, records: ImageDataset, image_canaries: int, gradient_canaries: int):
        number = len(records.units)
        each = 1 if records.users is None else RECORDS_OF_CANARY
        shape = records.images.shape[1:]
        generator = torch.Generator().manual_seed(secrets.randbits(32))
        noise = torch.randint(0, 256, (each * image_canaries, *shape), dtype=torch.uint8, generator=generator)
        extreme = 255 * torch.randint(0, 2, (gradient_canaries, *shape), dtype=torch.uint8, generator=generator)
        images = torch.cat([records.images, noise, extreme])
        labels = torch.randint(0, records.info.num_labels, (len(images) - len(records),), generator=generator)
        self.first_image = number
        self.first_gradient = number + image_canaries
        users = None
        if records.users is not None:
            of_images = torch.arange(self.first_image, self.first_gradient).repeat_interleave(each)
            of_gradients = torch.arange(self.first_gradient, self.first_gradient + gradient_canaries)
            users = torch.cat([records.users, of_images, of_gradients])
        self.known = records
        self.records = ImageDataset(images, torch.cat([records.labels, labels]), records.class_names, users=users)
        coins = torch.rand(image_canaries + gradient_canaries, generator=generator).round()
        self.present = torch.cat([torch.ones(number), coins]).bool()

    @property
    def image_present(self) -> torch.Tensor:
        """Whether each image canary is present."""
        return self.present[self.first_image : self.first_gradient]

    @property
    def gradient_present(self) -> torch.Tensor:
        """Whether each gradient canary is present."""
        return self.present[self.first_gradient :]

    @property
    def of_gradients(self) -> ImageDataset:
        """The records of the gradient canaries, one each."""
        return replace(self._select(torch.arange(self.first_gradient, len(self.present))), users=None)

    @property
    def all(self) -> ImageDataset:
        """The records of all canaries, whether they are present or not."""
        return self._select(torch.arange(self.first_image, len(self.present)))

    @property
    def those_present(self) -> ImageDataset:
        """The records, and the canaries that are present.

        A query of them releases what a query of all units does in which an absent canary adds nothing, which is the
        zero-out adjacency of the claim.
        """
        return self._select(self.present.nonzero()[:, 0])

    def _select(self, units: torch.Tensor) -> ImageDataset:
        index, places = self.records.units.records_of(units)
        return replace(
            self.records,
            images=self.records.images[index],
            labels=self.records.labels[index],
            users=None if self.records.users is None else places,
        )
