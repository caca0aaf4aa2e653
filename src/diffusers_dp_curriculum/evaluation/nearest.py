"""Finds the nearest training image of each sample, which shows copies.

This is not a proof of privacy, which rests on the mechanisms alone; but a copy would be obvious here.
"""

import torch
from tqdm.auto import tqdm


ROWS_AT_ONCE = 500  # the whole matrix of distances would not fit into memory


def distances_to_nearest(
    queries: torch.Tensor, candidates: torch.Tensor, k: int = 1, description: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Find the `k` nearest candidates of every query by Euclidean distance, nearest first.

    Args:
        queries (`torch.Tensor`): Features of shape `(N, D)`.
        candidates (`torch.Tensor`): Features of shape `(M, D)`.
        k (`int`, *optional*, defaults to 1): Number of neighbours, at most `M`.
        description (`str`, *optional*): Title of the progress bar; without it there is none.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Distances and indices into `candidates`, both of shape `(N, k)`.
    """
    distances, indices = [], []
    for batch in tqdm(queries.split(ROWS_AT_ONCE), desc=description, leave=False, disable=description is None):
        nearest = torch.cdist(batch, candidates).topk(k, largest=False).indices
        indices.append(nearest)
        # `cdist` uses a matrix product, whose rounding can give a copy a distance above 0: compute distances again.
        distances.append(torch.linalg.vector_norm(batch[:, None] - candidates[nearest], dim=2))
    return torch.cat(distances), torch.cat(indices)
