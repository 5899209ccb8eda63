"""Traces a torch module with torch.export and writes it as a standard ONNX graph."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from qcompile.errors import ExportError, TraceError
from qcompile.exporter.torch_inputs import Arguments

_TORCH = str(Path(torch.__file__).parent)


@contextlib.contextmanager
def evaluation_copy(
    model: nn.Module | ExportedProgram,
) -> Iterator[tuple[nn.Module | ExportedProgram, Callable[..., Any]]]:
    """Yield the model in evaluation mode on the CPU, and how to call it; then undo the mode.

    A module on another device is copied, so that the original stays where it is.
    """
    if isinstance(model, ExportedProgram):
        yield model, model.module()
        return
    if any(t.device.type != "cpu" for t in (*model.parameters(), *model.buffers())):
        model = copy.deepcopy(model).cpu()
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model, model
    finally:
        for module, training in modes:
            module.training = training


def trace(
    model: nn.Module | ExportedProgram, arguments: Arguments, dynamic_shapes: Any
) -> ExportedProgram:
    """Return the program that ``torch.export`` makes of ``model``.

    Raises:
        TraceError: it cannot; names module, source line and a way round.
    """
    if isinstance(model, ExportedProgram):
        return model
    batched = _batched(arguments) if dynamic_shapes is None else []
    if dynamic_shapes is None:
        # torch.export takes a dimension of one for a constant.
        rows = max(2, arguments.tensors[0].shape[0])
        arguments = arguments.resized(batched, rows)
        dynamic_shapes = _dynamic_batch(model, arguments, batched)
    try:
        with quiet():
            return torch.export.export(
                model,
                arguments.args,
                arguments.kwargs,
                dynamic_shapes=dynamic_shapes or None,
                strict=False,
            )
    except Exception as error:
        _run_once(model, arguments)
        inputs = [_input_names(model, arguments)[index] for index in batched]
        raise TraceError(_explain(error, model, inputs)) from error


def _run_once(model: nn.Module, arguments: Arguments) -> None:
    """Raise TraceError where the model does not even run, which is simpler to say."""
    try:
        with torch.no_grad(), quiet():
            model(*arguments.args, **arguments.kwargs)
    except Exception as error:
        raise TraceError(
            f"export: {type(model).__name__} fails on example_inputs"
            f"{_place(error, model)}: {_root(error)}. Give inputs that it accepts."
        ) from error


def varying(program: ExportedProgram) -> list[int]:
    """Return which of a program's input tensors have a first dimension that varies."""
    names = program.graph_signature.user_inputs
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values = [nodes[name].meta.get("val") for name in names if name in nodes]
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    return [
        index
        for index, value in enumerate(tensors)
        if value.ndim and isinstance(value.shape[0], torch.SymInt)
    ]


def to_onnx(
    program: ExportedProgram,
    opset_version: int,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> ir.Model:
    """Return ``program`` in standard operators.

    Raises:
        ExportError: torch.onnx cannot express it.
    """
    try:
        with quiet():
            result = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=opset_version,
                input_names=input_names,
                output_names=output_names,
                verbose=False,
            )
    except Exception as error:
        raise ExportError(
            f"export: torch.onnx cannot write this model in opset {opset_version}: "
            f"{_root(error)}. Try another opset_version, or replace the operator it names."
        ) from error
    assert result is not None
    _name_batch(result.model, varying(program))
    return result.model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what torch prints, logs and warns about from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.ExitStack() as stack:
            warnings.simplefilter("ignore")
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            yield
    finally:
        logging.disable(before)


def _batched(arguments: Arguments) -> list[int]:
    tensors = arguments.tensors
    if not tensors[0].ndim:
        return []
    rows = tensors[0].shape[0]
    return [i for i, tensor in enumerate(tensors) if tensor.ndim and tensor.shape[0] == rows]


def _dynamic_batch(model: nn.Module, arguments: Arguments, batched: Sequence[int]) -> Any:
    batch = Dim("batch")
    chosen = {id(arguments.tensors[index]) for index in batched}

    def spec(leaf: Any) -> Any:
        return {0: batch} if id(leaf) in chosen else None

    args, kwargs = pytree.tree_map(spec, (arguments.args, arguments.kwargs))
    if not kwargs:
        return args
    return {**dict(zip(_parameters(model), args, strict=False)), **kwargs}


def _parameters(model: nn.Module) -> list[str]:
    """Return the names of forward's parameters."""
    return list(inspect.signature(model.forward).parameters)


def _input_names(model: nn.Module, arguments: Arguments) -> list[str]:
    """Return a name for every input tensor."""
    named = {**dict(zip(_parameters(model), arguments.args, strict=False)), **arguments.kwargs}
    found = {}
    for name, value in named.items():
        for leaf in pytree.tree_leaves(value):
            found[id(leaf)] = repr(name)
    return [found.get(id(t), f"input {i}") for i, t in enumerate(arguments.tensors)]


def _name_batch(model: ir.Model, batched: Sequence[int]) -> None:
    """Call the dimension that varies ``batch`` where torch numbered it."""
    symbols = set()
    for index in batched:
        shape = model.graph.inputs[index].shape
        if shape is not None and isinstance(shape[0], ir.SymbolicDim):
            symbols.add(shape[0].value)
    if len(symbols) != 1:
        return
    symbol = re.compile(rf"\b{re.escape(str(symbols.pop()))}\b")
    values = [*model.graph.inputs]
    values += [output for node in model.graph for output in node.outputs]
    for value in values:
        if value.shape is None:
            continue
        for axis, size in enumerate(value.shape):
            if isinstance(size, ir.SymbolicDim) and size.value:
                value.shape[axis] = ir.SymbolicDim(symbol.sub("batch", size.value))


_CONSTANT = re.compile(r"specialized it to be a constant \((\d+)\)")
_LINE = re.compile(r'File "([^"]+)", line (\d+), in (\S+)\n\s*(.*)')


def _explain(error: Exception, model: nn.Module, batched: Sequence[str]) -> str:
    constant = _CONSTANT.search(str(error))
    if constant is not None:
        value = constant[1]
        dimensions = re.search(r"Constraints violated \((.*?)\)!", str(error))
        named = f"dimension 0 of {', '.join(batched)} (the batch)"
        if not batched and dimensions:
            named = f"the dimension {dimensions[1]}"
        return (
            f"export: {named} became the constant {value} while {type(model).__name__} was "
            f"traced: something in forward depends on its being {value}, such as a reshape to "
            f"{value} rows or a branch on the size. Write x.shape[0] in its place, or pass "
            "dynamic_shapes=False to fix every dimension at the example's."
        )
    where = _place(error, model)
    return (
        f"export: {type(model).__name__} cannot be traced{where}: {_root(error)}. torch.export "
        "follows one path through forward: take the data-dependent part out, or write it with "
        "torch.where or torch.cond."
    )


def _place(error: BaseException, model: nn.Module) -> str:
    """Return the module and source line of ``forward`` that an error comes from."""
    names = {id(module): name for name, module in model.named_modules()}
    found = ""
    cause: BaseException | None = error
    while cause is not None:
        step = cause.__traceback__
        while step is not None:
            frame = step.tb_frame
            file = frame.f_code.co_filename
            first = next(iter(frame.f_code.co_varnames), "")
            owner = names.get(id(frame.f_locals.get(first)))
            if owner is not None and not file.startswith(_TORCH):
                module = f"module {owner!r}" if owner else "the model itself"
                found = f" in {module} ({file}:{step.tb_lineno})"
            step = step.tb_next
        cause = cause.__cause__ or cause.__context__
    lines = _LINE.findall(str(error))
    if not found and lines:
        file, number, function, code = lines[-1]
        owner = next((n for n, m in model.named_modules() if _holds(m, file, int(number))), None)
        module = f"module {owner!r}" if owner else function
        found = f" in {module} ({file}:{number}: {code.strip()})"
    return found


def _holds(module: nn.Module, file: str, line: int) -> bool:
    """Return whether a source line belongs to a module's forward."""
    code = getattr(type(module).forward, "__code__", None)
    if code is None or code.co_filename != file:
        return False
    lines = [number for _, _, number in code.co_lines() if number is not None]
    return min(lines) <= line <= max(lines)


def _root(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:400].rstrip(".")
