"""CSV files as users have them: separators, decimal commas, missing entries, headers; and what is made of them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler

from framework.recipes.sparse_data import make_table, sparse_regression
from framework.recipes.table_data import TableData
from framework.recipes.tables import read_samples, read_table

PLAIN = "a,b,y\n1,2.5,3\n4,5,6.25\n-1,0,1e2\n7,8,9\n"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def table_of(path: Path, target: str = "y", **options) -> TableData:
    data = sparse_regression(simulation="linear", csv=path, target=target, **options)
    assert isinstance(data, TableData)
    return data


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace(",", ";").replace(".", ","),
        "\ufeff" + PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("a,b", '"a" , "b"').replace("-1,", '"-1", '),
        PLAIN.replace("\n", "\n\n"),
        PLAIN.replace("a,b,y", "a,b,y,"),  # a last column without name and entries
        PLAIN.replace("\n", ",\n"),
    ],
    ids=["commas", "semicolons", "tabs", "decimal commas", "excel", "quotes", "empty lines", "header", "last column"],
)
def test_every_common_way_to_write_a_table_is_read_alike(text: str, tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "table.csv", text))
    assert list(table.columns) == ["a", "b", "y"]
    assert table.numbers(["y", "a", "b"]).tolist() == [[3, 1, 2.5], [6.25, 4, 5], [100, -1, 0], [9, 7, 8]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a;b\n1,5;2\n2.5;3\n", "the column a has decimal points and commas, such as 2.5 and 1,5"),
        ("a,b\n1,2\n\n3\n", "lines 4 have another number of entries than the first: 2"),
        ("a,a,b\n1,2,3\n", "several columns of the name a"),
        (",a\n0,1\n", r"the columns 1 have no name; .*to_csv\(index=False\)"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path / "table.csv", text)).numbers(["a"])


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_bytes("größe,y\n1,2\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"is no text in UTF-8 .*save it as such"):
        read_table(tmp_path / "table.csv")


@pytest.mark.parametrize("first", ["0,1,2", "1,2,3", "2001,2002,2003"])
def test_a_first_line_of_numbers_that_may_be_names_is_not_taken_for_a_sample(first: str, tmp_path: Path) -> None:
    path = write(tmp_path / "samples.csv", f"{first}\n0.5,1,7\n")
    with pytest.raises(ValueError, match="counts up: does it name the columns, or is it a sample"):
        read_samples(path)
    write(path, f"x0,x1,x2\n{first}\n0.5,1,7\n")
    assert len(read_samples(path)) == 2
    with_names = write(tmp_path / "table.csv", f"{first}\n1,2,3\n4,5,7\n")  # of a table it is always the names
    assert list(read_table(with_names).columns) == first.split(",")


# ------------------------------------------------------------------------------------------------------------- classes


def class_table(path: Path, labels: list[str], num_rows: int = 100) -> Path:
    """Columns a and b, and a class y by b."""
    X = np.random.default_rng(0).normal(size=(num_rows, 2)) * [1, 50] + [0, 10]
    rank = X[:, 1].argsort().argsort() * len(labels) // num_rows
    lines = [f"{a},{b},{labels[k]}" for (a, b), k in zip(X, rank, strict=True)]
    return write(path, "\n".join(["a,b,y", *lines]) + "\n")


@pytest.mark.parametrize(
    ("labels", "options", "expected"),
    [
        (["yes", "no"], {}, ["no", "yes"]),
        (["low", "none", "high"], {}, ["high", "low", "none"]),  # "none" is a class, not a missing entry
        (["1", "0"], {}, ["0", "1"]),
        (["10", "9", "2.0", "2"], {"classes": True}, ["2", "9", "10"]),
        (["2", "9", "10"], {}, []),
        (["1", "0"], {"classes": False}, []),
    ],
)
def test_words_and_two_values_are_classes_and_other_numbers_if_asked(
    labels: list[str], options: dict, expected: list[str], tmp_path: Path
) -> None:
    data = table_of(class_table(tmp_path / "table.csv", labels), **options)
    assert (data.labels, data.num_classes) == (expected, len(expected) or None)
    assert data.num_outputs == (len(expected) or 1)
    assert data.train.tensors[1].dtype == (torch.int64 if expected else torch.float32)


def test_the_test_part_has_of_every_class_its_share_and_no_row_of_another_part(tmp_path: Path) -> None:
    path = class_table(tmp_path / "table.csv", ["a"] * 7 + ["b"] * 2 + ["c"])  # 70, 20, 10
    data = table_of(path, test_share=0.3, val_share=0.1)
    parts = [loader.tensors for loader in (data.test, data.val, data.train)]
    assert [part[1].bincount().tolist() for part in parts] == [[21, 6, 3], [7, 2, 1], [42, 12, 6]]
    rows = torch.cat([part[0] for part in parts])
    assert len(rows.unique(dim=0)) == 100
    assert not torch.equal(data.train.tensors[1], data.train.tensors[1].sort().values)
    again, other = table_of(path, test_share=0.3, val_share=0.1), table_of(path, test_share=0.3, seed=1)
    assert torch.equal(data.test.tensors[0], again.test.tensors[0])
    assert not torch.equal(data.test.tensors[0], other.test.tensors[0])
    assert table_of(path, test_share=0).test is None
    # Outputs are labels, and how probable they are.
    columns = data.columns(torch.tensor([[0.0, 5.0, 0.0], [0.0, 0.0, 9.0]]))
    assert columns["y"] == ["b", "c"]
    assert columns["probability"] == pytest.approx([0.9867, 0.99975], abs=1e-4)


@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        (["u", "v", "", "u", "v"], {}, "the target y is missing in 1 of 5 rows"),
        (["1", "2", "NaN", "4", "5"], {}, "the target y is missing in 1 of 5 rows"),
        (["1", "2", "3", "x", "5"], {}, "has numbers and words, such as x; correct these, or pass data.classes=true"),
        (["u", "v", "w", "x", "z"], {}, "has 5 different values in 5 rows; classes are two or more, and of several"),
        (["u", "u", "u", "u", "u"], {}, "has 1 different values in 5 rows"),
        (["u", "u", "u", "u", "v"], {}, "the classes v have one row each"),
        (["7", "7", "7", "7", "7"], {}, "the target y is constant over the training rows"),
        (["u", "u", "u", "v", "v"], {"test_share": 0.9}, "or none of a class to train on; change the shares"),
        (["u", "u", "u", "v", "v"], {"test_share": 0.01}, "leave too few for one of the parts"),
        (["u", "u", "u", "v", "v"], {"val_share": 1.0}, "data.val_share=1.0; pass a share of the rows"),
        (["u", "u", "u", "v", "v"], {"impute": "zero"}, "data.impute=zero; pass mean, median, or null"),
        (["u", "u", "u", "v", "v"], {"drop": ["c", "a"]}, "data.drop: c is no feature of .*; its columns are a, b, y"),
        (["u", "u", "u", "v", "v"], {"drop": ["y"]}, "data.drop: y is no feature of .* beside the target y"),
        (["u", "u", "u", "v", "v"], {"drop": ["a", "b"]}, "at least one feature and four rows are needed"),
    ],
)
def test_a_target_or_a_setting_that_is_no_good_is_refused(
    column: list[str], options: dict, message: str, tmp_path: Path
) -> None:
    rows = [f"{i},{i * i},{value}" for i, value in enumerate(column)]
    path = write(tmp_path / "table.csv", "\n".join(["a,b,y", *rows]))
    with pytest.raises(ValueError, match=message):
        table_of(path, **options)


# ------------------------------------------------------------------------------------------------------------- missing


@pytest.mark.parametrize("impute", ["mean", "median"])
def test_missing_entries_are_filled_by_the_training_rows_alone(impute: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    X = rng.exponential(size=(40, 3))
    X[rng.random(X.shape) < 0.2] = np.nan
    y = rng.normal(size=40)
    rows = [",".join("" if np.isnan(entry) else repr(float(entry)) for entry in row) for row in np.c_[X, y]]
    path = write(tmp_path / "table.csv", "\n".join(["a,b,c,y", *rows]))
    with pytest.raises(ValueError, match="the columns a, b, c have missing entries: fill"):
        table_of(path)
    data = table_of(path, impute=impute, test_share=0.25)
    # Which rows are of which part is known by the target.
    scale = data.scale
    assert scale is not None
    train, test = ([int(np.abs(y - v).argmin()) for v in scale.inverse(part.tensors[1].double())[:, 0].numpy()]
                   for part in (data.train, data.test))  # fmt: skip
    assert sorted(train + test) == list(range(40))
    imputer = SimpleImputer(strategy=impute).fit(X[train])
    scaler = StandardScaler().fit(imputer.transform(X[train]))
    for part, rows_of_it in ((data.train, train), (data.test, test)):
        expected = scaler.transform(imputer.transform(X[rows_of_it]))
        np.testing.assert_allclose(part.tensors[0].numpy(), expected, atol=1e-5)
    new = write(tmp_path / "new.csv", "c;b;a\n?;0,5;NA\n")
    expected = scaler.transform(imputer.transform([[np.nan, 0.5, np.nan]]))
    np.testing.assert_allclose(data.read_inputs(new)[1].numpy(), expected, atol=1e-12)
    with pytest.raises(ValueError, match="the columns a have entries that are missing or no numbers"):
        data.read_inputs(write(new, "c,b,a\n1,2,red\n"))


def test_columns_are_left_out_and_what_cannot_be_standardized_says_how(tmp_path: Path) -> None:
    path = write(tmp_path / "table.csv", "\n".join(["id,a,b,c,y", *(f"n{i},{i},0.1,,{i * i}" for i in range(10))]))
    with pytest.raises(ValueError, match="the columns id have entries that are no finite numbers: encode"):
        table_of(path)
    with pytest.raises(ValueError, match=r"without an entry over the training rows: c; .*'data\.drop=\[c\]'"):
        table_of(path, drop=["id"], impute="mean")
    with pytest.raises(ValueError, match=r"constant over the training rows: b; .*'data\.drop=\[b\]'"):
        table_of(path, drop=["id", "c"])
    assert table_of(path, drop=["id", "c", "b"]).feature_names == ["a"]
    assert make_table(path, "y", drop=["id", "c", "b"]).X[:, 0].tolist() == list(range(10))
