"""Kernels and compilers that compute wrong results."""

import torch

from diffusers_dp_curriculum.gradients import folded_layers


per_record_rows = folded_layers._per_record


def wrong_in_bfloat16(inputs, num_records):
    """Confuse draws and records in bfloat16, like a kernel that is wrong in one type alone."""
    rows = (
        inputs.reshape(num_records, -1, *inputs.shape[1:]).transpose(0, 1) if inputs.dtype == torch.bfloat16 else inputs
    )
    return per_record_rows(rows.reshape(inputs.shape), num_records)


def wrong_for_one_parameter(graph, inputs):
    """Compile a graph into code that is wrong for its last result."""

    def run(*inputs):
        *results, last = graph(*inputs)
        return [*results, last.flip(0)]

    return run
