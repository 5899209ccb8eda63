"""The kernels of ``triton_kernels/bilinear`` as they are launched on aligned tensors."""

from offline import Kernel

from qcompile.triton_kernels.bilinear import launch
from qcompile.triton_kernels.bilinear.kernel import (
    bilinear_input_kernel,
    bilinear_kernel,
    bilinear_weight_kernel,
)

WIDTHS = (32, 64)


def _arguments(element, width):
    pointers = dict.fromkeys(("x_ptr", "w_ptr", "y_ptr", "grad_ptr", "dx_ptr"), f"*{element}:16")
    sizes = ("rows", "outputs", "width", "part_outputs", "part_rows")
    steps = ("x_row", "w_output", "w_row", "y_row", "grad_row")
    return {
        **pointers,
        "dw_ptr": "*fp32:16",
        **dict.fromkeys((*sizes, *steps), "i32:16"),
        **dict.fromkeys(("x_column", "w_column", "grad_column"), 1),
        "precision": "tf32" if element == "fp32" else "ieee",
        "upcast": False,
        "block_o": launch.OUTPUTS,
        "block_k": launch.block(width),
    }


def _kernels():
    for element in ("bf16", "fp16", "fp32"):
        for width in WIDTHS:
            for function, rows in (
                (bilinear_kernel, launch.ROWS),
                (bilinear_input_kernel, launch.ROWS),
                (bilinear_weight_kernel, launch.STEP),
            ):
                arguments = {**_arguments(element, width), "block_m": rows}
                yield Kernel(
                    f"bilinear/{function.__name__}/{element}/{width}",
                    function,
                    {name: arguments[name] for name in function.arg_names},
                    num_warps=launch.WARPS,
                    num_stages=launch.STAGES,
                    quick=(90,) if element == "bf16" and width == 64 else (),
                    wide=element != "fp32" or function is not bilinear_weight_kernel,
                )


KERNELS = list(_kernels())
