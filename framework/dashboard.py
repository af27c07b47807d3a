"""What TensorBoard shows of a run besides its curves: which of them share a chart, and its row among other runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

# Of each category its charts, and of each chart the tags, regular expressions; it is drawn if the first one is logged.
# TensorBoard merges the charts of several runs where they are equal, and adds to a category only if the first run has
# it: so there are two, of which every run has both.
LOSSES = {
    "f, g and f + g": ("train/penalty", "train/loss", "train/objective"),
    "objective by iteration": ("iteration/objective",),
    "sparsity: share of exact zeros": ("sparsity/.+",),
    "lambda along the path": ("path/happy_lambda",),
    "features along the path": ("path/features",),
}
OPTIMIZATION = {
    "evaluations per step": ("evaluations_per_step",),
    "evaluations": ("closure_evaluations", "iteration/closure_evaluations"),
    "learning rates": ("lr[/-].+",),
    "gradient norm": ("grad_norm",),
    "gradient norm by parameter": ("grad_norm/.+",),
    "distance from a stationary point": ("stationarity_gap",),
}


def layout(tags: Iterable[str], prefix: str = "") -> dict[str, dict[str, list[str]]]:
    """Return the charts of the Custom Scalars tab that a run can fill, by category and title.

    What is measured in training and in validation shares a chart, such as ``train/loss_epoch`` and ``val/loss``.

    Args:
        tags: What the run has logged.
        prefix: With which each of its tags begins.

    Returns:
        Of each chart the regular expressions that its tags match as a whole.
    """
    names = {tag.removeprefix(prefix) for tag in tags}
    charts = {"Losses": _in_both_stages(names) | LOSSES, "Optimization": OPTIMIZATION}
    found = {
        category: {
            title: [f"{re.escape(prefix)}{pattern}$" for pattern in patterns]
            for title, patterns in of_category.items()
            if any(re.fullmatch(patterns[0], name) for name in names)
        }
        for category, of_category in charts.items()
    }
    return found if any(found.values()) else {}


def _in_both_stages(names: set[str]) -> dict[str, tuple[str, ...]]:
    """Return a chart for each quantity of the validation that training has, too; losses first."""
    charts: dict[str, tuple[str, ...]] = {}
    for name in sorted(names, key=lambda name: ("loss" not in name, name)):
        stage, separator, quantity = name.partition("/") if "/" in name else name.partition("_")
        trained = f"train{separator}{quantity}"
        of_training = next((tag for tag in (f"{trained}_epoch", trained) if tag in names), None)
        if stage == "val" and of_training is not None:
            charts[f"{quantity}: training and validation"] = (re.escape(name), re.escape(of_training))
    return charts


def layout_summary(charts: Mapping[str, Mapping[str, Sequence[str]]]) -> Summary:
    """Return what tells TensorBoard of a `layout`."""
    from torch.utils.tensorboard.summary import custom_scalars

    return custom_scalars(
        {
            category: {title: ["Multiline", patterns] for title, patterns in of_category.items()}
            for category, of_category in charts.items()
        }
    )


def row_summaries(
    params: Mapping[str, bool | int | float | str], metrics: Iterable[str], first: Iterable[str] = (), name: str = ""
) -> list[Summary]:
    """Return what begins a row of the HParams tab.

    Args:
        params: The hyperparameters.
        metrics: The tags whose last values to show beside them, in that order.
        first: Hyperparameters to show before the others, which are sorted by name; those that this run does not have
            are taken for numbers of other runs.
        name: Of the row, which no other run has; default: the folder.
    """
    from tensorboard.plugins.hparams.api_pb2 import DataType, Experiment, HParamInfo, MetricInfo, MetricName
    from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG, SESSION_START_INFO_TAG
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionStartInfo

    columns, start, first = [], SessionStartInfo(group_name=name), set(first)
    for key, value in params.items():
        kind, field = next(named for type_, named in _KINDS.items() if isinstance(value, type_))
        setattr(start.hparams[key], field, value)
        # Those that differ between runs are shown first: TensorBoard finds out only where no metrics are named.
        columns.append(HParamInfo(name=key, type=DataType.Value(kind), differs=key in first))
    # TensorBoard takes the columns of one run for those of all.
    columns += [HParamInfo(name=key, type=DataType.DATA_TYPE_FLOAT64, differs=True) for key in first - params.keys()]
    experiment = Experiment(
        hparam_infos=columns, metric_infos=[MetricInfo(name=MetricName(tag=metric)) for metric in metrics]
    )
    return [
        _of_row(EXPERIMENT_TAG, HParamsPluginData(experiment=experiment)),
        _of_row(SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
    ]


_KINDS = {
    bool: ("DATA_TYPE_BOOL", "bool_value"),
    int | float: ("DATA_TYPE_FLOAT64", "number_value"),
    str: ("DATA_TYPE_STRING", "string_value"),
}


def row_end_summary(*, success: bool) -> Summary:
    """Return what ends a row of the HParams tab."""
    from tensorboard.plugins.hparams.api_pb2 import Status
    from tensorboard.plugins.hparams.metadata import SESSION_END_INFO_TAG
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo

    status = Status.Value("STATUS_SUCCESS" if success else "STATUS_FAILURE")
    return _of_row(SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=SessionEndInfo(status=status)))


def _of_row(tag: str, data: Any) -> Summary:
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.metadata import NULL_TENSOR, create_summary_metadata

    return Summary(value=[Summary.Value(tag=tag, metadata=create_summary_metadata(data), tensor=NULL_TENSOR)])
