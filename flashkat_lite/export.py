"""Exported programs that run where this package is not: ONNX, AOTInductor without Python."""

from torch.export import ExportedProgram

from ._torch import OPS, norm_gradients
from .reference import norm_rational_closed_form, rational_gradients, rational_reference


def decomposed(program: ExportedProgram) -> ExportedProgram:
    """Return the program with our ops spelled out in PyTorch's own operations, those of the reference.

    `torch.export` keeps each as one op, which calls our kernels on a GPU and needs `import flashkat_lite` where
    the program is loaded. What this returns needs neither: hand it to `torch.onnx.export` or to
    `torch._inductor.aoti_compile_and_package`. Results are those of the reference, in float32 or wider inside.
    """
    return program.run_decompositions(
        {
            OPS.rational.default: lambda *arguments: rational_reference(*arguments[:3]),
            OPS.rational_backward.default: lambda *arguments: rational_gradients(*arguments[:4]),
            OPS.norm_rational.default: _norm_reference,
            OPS.norm_rational_backward.default: _norm_backward_reference,
        }
    )


def _norm_reference(*arguments):
    *tensors, rms, eps, dtype, _ = arguments
    return norm_rational_closed_form(*tensors, rms=rms, eps=eps, dtype=dtype)


def _norm_backward_reference(*arguments):
    dz, dsum, x, _, _, *parameters, rms, eps, branch_dtype, _ = arguments
    return norm_gradients(dz, dsum, x, *parameters, rms, eps, branch_dtype)
