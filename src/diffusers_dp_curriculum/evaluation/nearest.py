"""Whether samples are copies: each sample's nearest training image, and how far it is.

No proof of privacy, which rests on the mechanisms alone; but a copy would be plain to see here.
"""

import torch
from tqdm.auto import tqdm


ROWS_AT_ONCE = 500  # of a matrix of distances, which is never whole in memory


def distances_to_nearest(
    queries: torch.Tensor, candidates: torch.Tensor, k: int = 1, description: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The `k` nearest candidates of every query, nearest first, by Euclidean distance.

    Args:
        queries (`torch.Tensor`): Features of shape `(N, D)`.
        candidates (`torch.Tensor`): Features of shape `(M, D)`.
        k (`int`, *optional*, defaults to 1): At most `M`.
        description (`str`, *optional*): Of the progress bar; by default there is none.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Distances and indices into `candidates`, both of shape `(N, k)`.
    """
    distances, indices = [], []
    for batch in tqdm(queries.split(ROWS_AT_ONCE), desc=description, leave=False, disable=description is None):
        nearest = torch.cdist(batch, candidates).topk(k, largest=False).indices
        indices.append(nearest)
        # Once more without the trick of a matrix product, whose rounding makes a copy look like a neighbour.
        distances.append(torch.linalg.vector_norm(batch[:, None] - candidates[nearest], dim=2))
    return torch.cat(distances), torch.cat(indices)
