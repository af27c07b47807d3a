"""What one does with a trained model: ``proxtrain-test``, ``proxtrain-predict`` and ``proxtrain-export``."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from framework import Trainer, seed_everything
from framework.loop.overrides import overrides
from framework.recipes.build import make_data
from framework.recipes.data import Data, as_taken_by
from framework.recipes.mistakes import explain
from framework.recipes.own_modules import look_in_current_folder
from framework.run_folder import load_run

BATCH_SIZE = 1000


def run_test(arguments: Sequence[str] | None = None) -> None:
    """Run the command ``proxtrain-test``: evaluate a trained model on the data that its recipe holds out."""
    parser = _parser(
        "Evaluate a trained model on the test data of its recipe, or where it has none on those of validation: by "
        "test_step, or validation_step."
    )
    _run(parser, arguments, _test)


def run_predict(arguments: Sequence[str] | None = None) -> None:
    """Run the command ``proxtrain-predict``: write a trained model's outputs for new inputs."""
    parser = _parser("Write what a trained model makes of new inputs, prepared as its training data were.")
    parser.add_argument("input", type=Path, help="a .csv of numbers, a tensor in a .pt, or a folder of images")
    parser.add_argument("-o", "--output", type=Path, help="a .csv, or a .pt of raw outputs (default: by the input)")
    _run(parser, arguments, _predict)


def run_export(arguments: Sequence[str] | None = None) -> None:
    """Run the command ``proxtrain-export``: write a trained model for use without this package."""
    parser = _parser("Write a trained network for use without proxtrain, and check that its outputs agree.")
    parser.add_argument("output", type=Path, help="a .pt2 (torch.export) or an .onnx (needs proxtrain[onnx])")
    _run(parser, arguments, _export)


def _parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, help="a run folder, as proxtrain prints it")
    parser.add_argument("--checkpoint", default="best", help="best, last, or a file (default: best)")
    return parser


def _run(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    command: Callable[[argparse.Namespace, Any, Path], None],
) -> None:
    options = parser.parse_args(arguments)
    look_in_current_folder()
    try:
        module, path = load_run(options.folder, options.checkpoint)
        print(f"{path} of recipe {module.recipe.recipe_name}", flush=True)
        command(options, module, path)
    except Exception as error:
        message = explain(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(1)


def _trainer(module: Any) -> Trainer:
    """Return a trainer of the recipe's device and precision that writes nothing."""
    chosen = module.recipe.trainer
    return Trainer(
        accelerator=chosen.accelerator,
        devices=1,
        precision=chosen.precision,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def _data(module: Any) -> Data:
    """Make the data of the recipe again; what is drawn at random for it is drawn as in the run."""
    seed_everything(module.recipe.seed, verbose=False)
    return make_data(module.recipe)


def _test(options: argparse.Namespace, module: Any, path: Path) -> None:
    data = _data(module)
    held_out = data.val if data.test is None else data.test
    if held_out is None:
        raise ValueError(f"data={module.recipe.data._target_} has no data for a test or a validation")
    trainer = _trainer(module)
    evaluate = trainer.test if overrides(module, "test_step") else trainer.validate
    evaluate(module, held_out)


def _predict(options: argparse.Namespace, module: Any, path: Path) -> None:
    output = options.output or Path(f"{options.input.with_suffix('')}_predictions.csv")
    if output.suffix not in (".csv", ".pt"):
        raise ValueError(f"--output {output}: pass a .csv, or a .pt for the raw outputs")
    data = _data(module)
    names, inputs = data.read_inputs(options.input)
    batches = as_taken_by(module, inputs).split(BATCH_SIZE)
    outputs = torch.cat(_trainer(module).predict(module, batches)).cpu()
    outputs = outputs if outputs.dtype == torch.float64 else outputs.float()
    if output.suffix == ".pt":
        torch.save(outputs, output)
    else:
        columns = {"input": names, **data.columns(outputs)}
        with output.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
    print(f"{len(outputs)} predictions in {output}")


def _export(options: argparse.Namespace, module: Any, path: Path) -> None:
    if options.output.suffix not in (".pt2", ".onnx"):
        raise ValueError(f"{options.output}: pass a name that ends in .pt2 (torch.export) or .onnx")
    network = getattr(module, "network", module).eval()
    if type(network).forward is nn.Module.forward:
        raise ValueError(
            f"{type(network).__name__} defines no forward, which is what is exported: define it, or call the part that "
            "is to be exported self.network"
        )
    data = _data(module)
    batch = next(iter(data.train))
    inputs = as_taken_by(module, batch[0] if isinstance(batch, tuple | list) else batch)
    # An example of one sample would make the exported network one for single samples.
    inputs = inputs[: max(2, min(len(inputs), 8))]
    if len(inputs) < 2:
        inputs = torch.cat([inputs, inputs])
    with torch.no_grad():
        expected = network(inputs)
    found = (_export_onnx if options.output.suffix == ".onnx" else _export_program)(network, inputs, options.output)
    difference = float((found.detach() - expected).abs().max())
    tolerance = 1e-4 * max(1.0, float(expected.abs().max()))
    if not difference <= tolerance:
        options.output.unlink()
        raise ValueError(
            f"the exported network's outputs differ by {difference:.2g} from the module's: nothing written"
        )
    print(f"{options.output}: inputs {('N', *inputs.shape[1:])}, outputs differ by at most {difference:.2g}")


def _export_program(network: nn.Module, inputs: Tensor, path: Path) -> Tensor:
    network.to(memory_format=torch.contiguous_format)  # torch.export.save warns of weights that lie in another order
    program = torch.export.export(network, (inputs,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    torch.export.save(program, path)
    return torch.export.load(path).module()(inputs)


def _export_onnx(network: nn.Module, inputs: Tensor, path: Path) -> Tensor:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError("to export ONNX, install proxtrain[onnx]") from error
    torch.onnx.export(
        network, (inputs,), path, input_names=["input"], output_names=["output"], dynamic_shapes=({0: "N"},),
        dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    [output] = session.run(None, {"input": inputs.numpy()})
    return torch.from_numpy(output)
