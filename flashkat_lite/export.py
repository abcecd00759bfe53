"""Exported programs that run where this package is not: ONNX, AOTInductor without Python."""

from torch.export import ExportedProgram

from ._torch import OPS
from .reference import rational_gradients, rational_reference


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """Return the program with `rational` spelled out in PyTorch's own operations, those of the reference.

    `torch.export` keeps `rational` as one op, which calls our kernels on a GPU and needs `import flashkat_lite` where
    the program is loaded. What this returns needs neither: hand it to `torch.onnx.export` or to
    `torch._inductor.aoti_compile_and_package`. Results are those of the reference, in float32 or wider inside.
    """
    return program.run_decompositions(
        {
            OPS.rational.default: lambda *arguments: rational_reference(*arguments[:3]),
            OPS.rational_backward.default: lambda *arguments: rational_gradients(*arguments[:4]),
        }
    )
