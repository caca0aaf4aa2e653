"""Kernels and compilers that compute something else than they should."""

import torch

from diffusers_dp_curriculum.gradients import folded_layers


per_record_rows = folded_layers._per_record


def wrong_in_bfloat16(inputs, num_records):
    """Draws and records confused, as by a kernel that is wrong in one type alone."""
    rows = (
        inputs.reshape(num_records, -1, *inputs.shape[1:]).transpose(0, 1) if inputs.dtype == torch.bfloat16 else inputs
    )
    return per_record_rows(rows.reshape(inputs.shape), num_records)


def wrong_for_one_parameter(graph, inputs):
    """A compiler whose code is wrong for the last of its results."""

    def run(*inputs):
        *results, last = graph(*inputs)
        return [*results, last.flip(0)]

    return run
