"""TensorLoader: what it yields, in what order, and how that order is saved and replayed."""

import copy
import itertools
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from framework.data import TensorLoader
from framework.data.loader import CHUNK_BYTES


def samples(num_samples: int) -> tuple[Tensor, Tensor]:
    """Return distinct rows whose label says which row they are."""
    return torch.randn(num_samples, 3), torch.arange(num_samples)


def labels(batches: Iterable[tuple[Tensor, ...]]) -> list[list[int]]:
    return [batch[-1].tolist() for batch in batches]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("batch_size", [1, 4, 5, 10])
def test_unshuffled_batches_equal_those_of_a_dataloader(batch_size: int, drop_last: bool) -> None:
    tensors = samples(10)
    loader = TensorLoader(*tensors, batch_size=batch_size, drop_last=drop_last)
    reference = DataLoader(TensorDataset(*tensors), batch_size=batch_size, drop_last=drop_last)

    assert len(loader) == len(reference)
    assert loader.num_samples == 10
    for batch, expected in zip(loader, reference, strict=True):
        assert isinstance(batch, tuple)
        assert all(torch.equal(a, b) for a, b in zip(batch, expected, strict=True))


def test_unshuffled_batches_share_memory_with_the_tensors() -> None:
    x, y = samples(10)
    pointers = [batch[0].data_ptr() for batch in TensorLoader(x, y, batch_size=4)]
    assert pointers == [x[start:].data_ptr() for start in (0, 4, 8)]


def test_one_tensor_still_gives_tuples() -> None:
    (batch,) = TensorLoader(torch.arange(3), batch_size=3)
    assert isinstance(batch, tuple)
    assert batch[0].tolist() == [0, 1, 2]


def test_a_shuffled_epoch_holds_every_sample_once_and_keeps_rows_together() -> None:
    x, y = samples(23)
    batches = list(TensorLoader(x, y, batch_size=5, shuffle=True))
    assert [len(batch[1]) for batch in batches] == [5, 5, 5, 5, 3]
    order = torch.cat([batch[1] for batch in batches])
    assert order.tolist() != list(range(23))
    assert sorted(order.tolist()) == list(range(23))
    assert torch.equal(torch.cat([batch[0] for batch in batches]), x[order])


def test_data_of_several_chunks_is_cut_like_data_of_one() -> None:
    x = torch.arange(1000).repeat_interleave(2 * CHUNK_BYTES // 4000).view(1000, -1).int()
    wide, narrow = (TensorLoader(t, batch_size=64, shuffle=True) for t in (x, x[:, :1]))
    assert x.nbytes > CHUNK_BYTES
    for (batch,), (expected,) in zip(wide, narrow, strict=True):
        assert torch.equal(batch[:, :1], expected)


def test_each_epoch_has_its_own_order_and_equal_seeds_have_equal_orders() -> None:
    first, second, other = (TensorLoader(*samples(20), batch_size=6, shuffle=True, seed=seed) for seed in (3, 3, 4))
    epochs = [labels(first) for _ in range(3)]
    assert epochs == [labels(second) for _ in range(3)]
    others = [labels(other) for _ in range(3)]
    assert all(a != b for a, b in itertools.combinations(epochs + others, 2))


def test_the_order_neither_reads_nor_advances_the_global_generator() -> None:
    loader = TensorLoader(*samples(20), batch_size=6, shuffle=True)
    state = torch.get_rng_state()
    first = labels(copy.deepcopy(loader))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert labels(loader) == first


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("taken", range(6))
def test_a_restored_loader_continues_with_the_batches_that_would_have_followed(taken: int, shuffle: bool) -> None:
    loader = TensorLoader(*samples(23), batch_size=5, shuffle=shuffle, seed=7)
    list(loader)
    running = iter(loader)
    for _ in range(taken):
        next(running)
    state = loader.state_dict()
    assert state == {"seed": 7, "epoch": 1, "batch": taken}

    restored = TensorLoader(*samples(23), batch_size=5, shuffle=shuffle)
    restored.load_state_dict(state)
    for _ in range(3):
        assert labels(restored) == labels(running)
        running = iter(loader)


def test_loading_the_state_from_before_an_epoch_replays_that_epoch() -> None:
    loader = TensorLoader(*samples(23), batch_size=5, shuffle=True)
    list(loader)
    state = loader.state_dict()
    first = labels(loader)
    for _ in range(3):
        loader.load_state_dict(state)
        assert labels(loader) == first
    assert labels(loader) != first


def test_a_state_taken_after_a_break_finishes_the_epoch_but_the_next_iteration_starts_another() -> None:
    whole = labels(TensorLoader(*samples(23), batch_size=5, shuffle=True))
    loader = TensorLoader(*samples(23), batch_size=5, shuffle=True)
    for number, _ in enumerate(loader, start=1):
        if number == 2:
            break
    state = loader.state_dict()
    assert loader.state_dict() == {"seed": 0, "epoch": 0, "batch": 2}
    assert labels(loader) != whole
    assert loader.state_dict() == {"seed": 0, "epoch": 2, "batch": 0}
    loader.load_state_dict(state)
    assert labels(loader) == whole[2:]


def test_an_older_iterator_does_not_move_the_state_of_a_newer_one() -> None:
    loader = TensorLoader(*samples(10), batch_size=2, shuffle=True)
    older, newer = iter(loader), iter(loader)
    next(newer)
    rest = labels(older)
    assert loader.state_dict() == {"seed": 0, "epoch": 1, "batch": 1}
    assert rest == labels(TensorLoader(*samples(10), batch_size=2, shuffle=True))


def test_the_state_loads_with_weights_only(tmp_path: object) -> None:
    loader = TensorLoader(*samples(10), batch_size=2)
    path = f"{tmp_path}/state.pt"
    torch.save(loader.state_dict(), path)
    assert torch.load(path, weights_only=True) == loader.state_dict()


def test_the_transform_sees_whole_batches_and_replays_with_the_generator_state() -> None:
    def noisy(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + torch.randn_like(x), y

    x, y = samples(23)
    loader = TensorLoader(x, y, batch_size=5, shuffle=True, transform=noisy)
    position, rng = loader.state_dict(), torch.get_rng_state()
    first = list(loader)
    assert not torch.equal(first[0][0], x[first[0][1]])

    loader.load_state_dict(position)
    torch.set_rng_state(rng)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, loader, strict=True))


def test_moving_the_tensors_keeps_the_loader_and_its_order() -> None:
    loader = TensorLoader(*samples(6), batch_size=2, shuffle=True)
    assert loader.to("meta") is loader
    assert all(tensor.device.type == "meta" for batch in loader for tensor in batch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_order_is_the_same_on_every_device() -> None:
    on_cpu, on_cuda = (TensorLoader(*samples(23), batch_size=5, shuffle=True) for _ in range(2))
    assert labels(on_cpu) == labels(on_cuda.to("cuda"))


@pytest.mark.parametrize(
    ("tensors", "options", "message"),
    [
        ([], {"batch_size": 1}, "at least one"),
        ([torch.ones(3), torch.ones(4)], {"batch_size": 1}, r"\[3, 4\] samples.*first dimensions are equal"),
        ([torch.ones(0, 2)], {"batch_size": 1}, r"\(0, 2\).*N > 0"),
        ([torch.tensor(1.0)], {"batch_size": 1}, r"\(\).*shape \(N, \.\.\.\)"),
        ([torch.ones(3)], {"batch_size": 0}, "batch_size=0.*1 or more"),
        ([torch.ones(3)], {"batch_size": 2.0}, r"batch_size=2\.0"),
        ([torch.ones(3)], {"batch_size": 4, "drop_last": True}, "batch_size <= 3 or drop_last=False"),
    ],
)
def test_input_that_gives_no_batches_is_refused(tensors: list[Tensor], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorLoader(*tensors, **options)


def test_anything_but_tensors_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Tensor 1 is of type list.*as_tensor"):
        TensorLoader(torch.ones(2), [1, 2], batch_size=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"epoch": 0, "batch": 0}, r"\['batch', 'epoch'\]"),
        ({"seed": 0, "epoch": 0, "batch": 4}, "batch 4.*has 3 batches"),
        ({"seed": 0, "epoch": -1, "batch": 0}, "epoch -1"),
    ],
)
def test_the_state_of_another_loader_is_refused_and_changes_nothing(state: dict[str, int], message: str) -> None:
    loader = TensorLoader(torch.arange(6), batch_size=2, seed=5)
    with pytest.raises(ValueError, match=message):
        loader.load_state_dict(state)
    assert loader.state_dict() == {"seed": 5, "epoch": 0, "batch": 0}
