"""Transform, train, export, serve: what `make demo` runs, in under three minutes on two cores."""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import onnxruntime
import torch
from rich.table import Table
from speller import Speller, console, evaluate, train

import qcompile
from qcompile.data import codespell

TYPED = ["acommodate", "definately", "enviroment", "occured", "recieve", "seperate", "wierd"]


def sessions(model: torch.nn.Module, folder: str, name: str, ids: torch.Tensor):
    """Export the model and open it twice: with the plugin, and in plain onnxruntime."""
    path = Path(folder) / f"{name}.onnx"
    qcompile.export(model, path, (ids,), top_k=5)
    options = onnxruntime.SessionOptions(), qcompile.session_options()
    return [onnxruntime.InferenceSession(str(path), option) for option in options]


def latency(session: onnxruntime.InferenceSession, words: list) -> float:
    """Return the median milliseconds that one word takes."""
    times = []
    for word in words:
        begin = time.perf_counter()
        session.run(None, {session.get_inputs()[0].name: word})
        times.append(1e3 * (time.perf_counter() - begin))
    return median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=4)
    epochs = parser.parse_args().epochs
    data = codespell.load()
    console.print(
        f"codespell: {len(data.train_ids):,} words to learn from, {len(data.test_ids):,} to test, "
        f"{len(data.labels):,} corrections"
    )
    torch.manual_seed(0)
    dense = Speller(len(data.labels))
    quadratic = qcompile.transform(dense, quadratic=qcompile.Quadratic("Quadra", where="hidden"))
    quadratic.activation = torch.nn.Identity()  # a quadratic neuron is no longer linear
    sparse = qcompile.transform(quadratic, sparse_output=qcompile.LSH())
    for model in (quadratic, sparse):
        console.print(str(model.qcompile_report), markup=False)

    variants = {"first-order dense": dense, "quadratic dense": quadratic, "quadratic + LSH": sparse}
    table = Table("network", "parameters", "P@1", "training s", "plain ms", "plugin ms")
    words = torch.from_numpy(data.test_ids[:400]).split(1)
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, model) in enumerate(variants.items()):
            begin = time.perf_counter()
            # An epoch of the sparse layer takes less than half the time, so it gets two for one.
            train(name, model, data, epochs * (1 + (model is sparse)), sparse=model is sparse)
            seconds = time.perf_counter() - begin
            plain, plugin = sessions(model, folder, str(number), words[0])
            parameters = sum(parameter.numel() for parameter in model.parameters())
            figures = [f"{evaluate(model, data)[0]:.3f}", f"{seconds:.1f}"]
            figures += [f"{latency(s, [w.numpy() for w in words]):.3f}" for s in (plain, plugin)]
            table.add_row(name, f"{parameters:,}", *figures)

    console.print("\ntyped words, answered by onnxruntime with the plugin, then without:")
    for word in TYPED:
        inputs = {plugin.get_inputs()[0].name: codespell.encode([word])}
        (_, ids), (_, same) = plugin.run(None, inputs), plain.run(None, inputs)
        assert (ids == same).all(), f"{word}: the two disagree: {ids} and {same}"
        console.print(f"  {word} → {', '.join(data.labels[i] for i in ids[0, :3])}")
    console.print(table)


if __name__ == "__main__":
    main()
