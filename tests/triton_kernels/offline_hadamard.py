"""The kernels of ``triton_kernels/hadamard`` as they are launched."""

from offline import Kernel

from qcompile.triton_kernels.hadamard import kernel

_FORWARD = ("a_ptr", "b_ptr", "c_ptr", "y_ptr")
_BACKWARD = ("grad_ptr", "a_ptr", "b_ptr", "da_ptr", "db_ptr")


def _kernels():
    for element in ("fp64", "fp32", "fp16", "bf16"):
        constants = {"widen": element in ("fp16", "bf16"), "block": kernel.BLOCK, "count": "i64:16"}
        for function, pointers, more in (
            (kernel.hadamard_kernel, _FORWARD, {"has_c": True}),
            (kernel.hadamard_backward_kernel, _BACKWARD, {}),
        ):
            yield Kernel(
                f"hadamard/{function.__name__}/{element}",
                function,
                {**dict.fromkeys(pointers, f"*{element}:16"), **constants, **more},
                num_warps=kernel.NUM_WARPS,
                quick=(90,),
                wide=True,
            )


KERNELS = list(_kernels())
