"""Exported programs that run where this package is not: ONNX, AOTInductor without Python."""

import torch
from torch.export import ExportedProgram

from .reference import rational_gradients, rational_reference


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """Return the program with `rational` spelled out in PyTorch's own operations, those of the reference.

    `torch.export` keeps `rational` as one op, which calls our kernels on a GPU and needs `import flashkat_lite` where
    the program is loaded. What this returns needs neither: hand it to `torch.onnx.export` or to
    `torch._inductor.aoti_compile_and_package`. Results are those of the reference, in float32 or wider inside.
    """
    ops = torch.ops.flashkat_lite
    return program.run_decompositions(
        {
            ops.rational.default: lambda *arguments: rational_reference(*arguments[:3]),
            ops.rational_backward.default: lambda *arguments: rational_gradients(*arguments[:4]),
        }
    )
