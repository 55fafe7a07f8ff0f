"""Parquet files and datasets of Hugging Face: pictures as bytes, structs or paths, and rows that cannot be used."""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from itit import storage
from itit.data import records
from tests.core.test_storage import root  # noqa: F401 (a fixture)
from tests.helpers.common import ROOT
from tests.helpers.flaky_storage import gcs  # noqa: F401 (a fixture)
from tools.data import listing, preparing
from tools.data.sources.item import BadItem, Item, everything

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet as writer  # noqa: E402

from tools.data.sources import columns, parquet  # noqa: E402
from tools.data.sources.parquet import Parquet  # noqa: E402


def picture():
    data = io.BytesIO()
    size = np.random.default_rng().integers(10, 40, 2)
    Image.fromarray(np.random.default_rng().integers(0, 256, (*size, 3), dtype=np.uint8)).save(data, "PNG")
    return data.getvalue()


def write(path, columns, rows_a_group=3, schema=None):
    data = io.BytesIO()
    writer.write_table(pyarrow.table(columns, schema), data, row_group_size=rows_a_group)
    storage.write_bytes(str(path), data.getvalue())


def split(items):
    items = list(items)
    return [i for i in items if isinstance(i, Item)], [str(i) for i in items if isinstance(i, BadItem)]


@pytest.mark.parametrize("form", ["bytes", "struct", "struct, path first", "path"])
def test_pictures_in_every_form_a_column_has(tmp_path, form):
    data, texts = [picture() for _ in range(8)], [f"text {n}" for n in range(8)]
    texts[4], data[6] = None, None
    for number, value in enumerate(data):
        (tmp_path / f"{number}.png").write_bytes(value or b"")
    column = {
        "bytes": data,
        "struct": [value and {"bytes": value, "path": "ignored.png"} for value in data],
        "struct, path first": [{"path": None, "bytes": value} for value in data],
        "path": [value and f"{number}.png" for number, value in enumerate(data)],
    }[form]
    write(tmp_path / "a.parquet", {"caption": texts, "image": column, "unused": list(range(8))})
    source = Parquet(f"{tmp_path}/*.parquet")
    found, bad = split(everything(source))
    assert not bad and list(source.parts()) == [f"{tmp_path}/a.parquet"]
    assert [item.image and item.image.read(10**6) for item in found] == data
    assert [item.texts for item in found] == [(text,) if text else () for text in texts]
    assert found[4].num_empty == 1
    ids = [f"a.parquet:{n}" for n in range(1, 9)]
    assert [item.key for item in found] == (ids if form != "path" else [*column[:6], ids[6], column[7]])
    back = [listing._unpack(json.loads(json.dumps(listing._pack(item)))) for item in found]
    assert back == found


def test_structs_without_bytes_are_paths_and_lists_are_several_texts(tmp_path):
    data = picture()
    (tmp_path / "x.png").write_bytes(data)
    given = {"texts": [["a", "b"], [], ["c", None]], "key": [7, 8, 9],
             "image": [{"bytes": None, "path": "x.png"}, {"bytes": data, "path": None}, None]}  # fmt: skip
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("texts", pyarrow.list_(pyarrow.string())), ("key", pyarrow.int64()), ("image", image)])
    write(tmp_path / "a.parquet", given, schema=schema)
    found, bad = split(everything(Parquet(f"{tmp_path}/a.parquet", text_column="texts", id_column="key")))
    assert [item.key for item in found] == ["7", "8", "9"] and not bad
    assert [item.image and item.image.read(10**6) for item in found] == [data, data, None]
    assert [item.load_texts() for item in found] == [(["a", "b"], 0), ([], 0), (["c"], 0)] and found[2].num_empty == 1


def test_large_columns_are_columns(tmp_path):
    """As Arrow has them of more than 2 GB."""
    large = pyarrow.struct([("path", pyarrow.large_string()), ("bytes", pyarrow.large_binary())])
    assert [columns.kind_of(kind, "x") for kind in (large, pyarrow.large_binary(), pyarrow.large_string())] == [
        "struct", "bytes", "path"]  # fmt: skip
    values = pyarrow.chunked_array([[{"path": "a", "bytes": b"1"}], [None, {"path": None, "bytes": None}]], large)
    assert columns.bytes_of(values).to_pylist() == [b"1", None, None] and columns.paths_of(values) == ["a", None, None]


def test_nothing_of_the_pictures_is_read_to_list_them(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", {"caption": ["a"] * 6, "image": [{"bytes": picture(), "path": "p"}] * 6})
    monkeypatch.setattr(parquet, "_bytes", lambda *_: pytest.fail("read"))
    assert len(split(everything(Parquet(f"{tmp_path}/a.parquet")))[0]) == 6


def test_rows_that_cannot_be_used(tmp_path):
    write(tmp_path / "a.parquet", {"caption": ["a", None, "c"], "image": [picture(), None, b"no picture"]})
    write(tmp_path / "b.parquet", {"text": ["a"], "image": [picture()]})
    write(tmp_path / "c.parquet", {"caption": ["a", "b"], "image": [[picture()], [picture()]]})
    write(tmp_path / "d.parquet", {"caption": [3], "image": [picture()]})
    write(tmp_path / "e.parquet", {"caption": [{"en": "a"}], "image": [{"data": picture()}]})
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "f.parquet").write_bytes(whole[:-30])
    (tmp_path / "g.parquet").write_bytes(b"PAR1 is not enough")
    found, bad = split(everything(Parquet(f"{tmp_path}/*.parquet")))
    assert len(found) == 2
    expected = [
        ("a.parquet:2", "neither picture nor text"),
        ("b.parquet", "no column 'caption'; there are 'text', 'image'"),
        ("c.parquet", "column 'image' holds list<element: binary>: must be bytes, a path, or a struct {bytes, path}"),
        ("c.parquet", "column 'image' holds list"),
        ("d.parquet:1", "column 'caption' holds int: must be a string"),
        ("e.parquet", "column 'image' holds struct<data: binary>"),
        ("f.parquet", "the file is damaged, rows from 1 on are lost"),
        ("g.parquet", "the file is damaged, rows from 1 on are lost"),
    ]
    for line, (place, cause) in zip(bad, expected, strict=True):
        assert line.startswith(f"{tmp_path}/{place}: ") and cause in line and "\n" not in line, line
    settings = preparing.Settings(output=str(tmp_path / "out"), num_workers=1, max_bad_records=9)
    done = preparing.run("parquet", Parquet(f"{tmp_path}/*.parquet"), settings)
    assert done["damaged"] == 9 and done["splits"]["paired"]["records"] == 1
    assert "a.parquet:3: not a picture" in (tmp_path / "out" / "damaged.txt").read_text()
    (tmp_path / "a.parquet").write_bytes(whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :])
    parquet._column.cache_clear()
    with pytest.raises(ValueError, match="row group 0 is damaged: .*"):
        found[0].image.read(10**6)


def test_columns_that_writers_make_of_what_is_not_there(tmp_path):
    """A file whose pictures are all missing, structs of one field, columns of views, names that are there twice."""
    data, names = picture(), ["caption", "image", "image"]
    for name, column in {
        "a": pyarrow.nulls(1), "b": [{"bytes": None, "path": None}], "c": [{"bytes": data}],
        "d": pyarrow.array([data], pyarrow.binary_view()),
    }.items():  # fmt: skip
        write(tmp_path / f"{name}.parquet", {"caption": [name], "image": column})
    twice = pyarrow.Table.from_arrays([pyarrow.array(["e"]), *[pyarrow.array([data])] * 2], names=names)
    writer.write_table(twice, tmp_path / "e.parquet")
    found, (bad,) = split(everything(Parquet(f"{tmp_path}/*.parquet")))
    assert [(item.texts, item.image and item.image.read(10**6)) for item in found] == [
        (("a",), None), (("b",), None), (("c",), data), (("d",), data)]  # fmt: skip
    assert bad == f"{tmp_path}/e.parquet: 2 columns 'image'; there are 'caption', 'image', 'image'"


def test_one_text_that_is_not_utf8_loses_no_other_row(tmp_path):
    texts = pyarrow.array([b"a", b"\xff", b"c"])
    texts = pyarrow.Array.from_buffers(pyarrow.string(), 3, texts.buffers())
    write(tmp_path / "a.parquet", {"caption": texts, "image": [picture()] * 3})
    found, bad = split(everything(Parquet(f"{tmp_path}/a.parquet")))
    assert [item.texts for item in found] == [("a",), ("c",)]
    assert bad == [f"{tmp_path}/a.parquet:2: a text is not UTF-8"]


def test_a_page_that_does_not_match_its_checksum_is_damage(tmp_path):
    data = io.BytesIO()
    table = pyarrow.table({"caption": ["a"], "image": [picture()]})
    writer.write_table(table, data, compression="none", write_page_checksum=True, use_dictionary=False,
                       write_statistics=False)  # fmt: skip
    whole, value = bytearray(data.getvalue()), table["image"][0].as_py()
    whole[whole.find(value) + len(value) // 2] ^= 1
    (tmp_path / "a.parquet").write_bytes(whole)
    _, (bad,) = split(everything(Parquet(f"{tmp_path}/a.parquet")))
    assert bad.startswith(f"{tmp_path}/a.parquet:1: ") or bad.startswith(f"{tmp_path}/a.parquet: "), bad
    assert "CRC" in bad and "\n" not in bad


def test_on_disks_and_object_stores_by_any_number_of_workers(tmp_path, root):  # noqa: F811
    """Ranges of rows are read, in bad weather, too."""
    data, found = [picture() for _ in range(24)], {}
    for number in range(3):
        part = {"caption": [f"{number} {n}" for n in range(8)], "image": data[8 * number :][:8]}
        write(storage.join(root, "in", f"{number}.parquet") if "gs:" in root else tmp_path / f"{number}.parquet", part)
    pattern = storage.join(root, "in", "*") if "gs:" in root else f"{tmp_path}/*.parquet"
    for workers in (1, 2):
        settings = preparing.Settings(output=storage.join(root, str(workers)), num_workers=workers, image_quality=0,
                                      shard_bytes=4 * len(data[0]))  # fmt: skip
        preparing.run("parquet", Parquet(pattern), settings)
        names = [name for name in storage.list_dir(settings.output) if name.endswith((".tfrecord", ".index"))]
        found[workers] = {name: storage.read_bytes(storage.join(settings.output, name)) for name in names}
    assert found[1] == found[2] and len(found[1]) > 4
    rows = []
    for name in sorted(name for name in found[1] if name.endswith(".tfrecord")):
        path = storage.join(root, "1", name)
        rows += [records.decode_example(records.read(path, *span)) for span in records.index(path).tolist()]
    assert [row["image"] for row in rows] == [[value] for value in data]


def test_datasets_of_hugging_face(tmp_path):
    datasets = pytest.importorskip("datasets")
    from tools.data.sources import hf

    data = [picture() for _ in range(5)]
    features = datasets.Features({"caption": datasets.Value("string"), "image": datasets.Image()})
    rows = {"caption": ["a", "b", None, "d", "e"], "image": [{"bytes": value, "path": None} for value in data]}
    whole = datasets.Dataset.from_dict(rows, features)
    shuffled = np.random.default_rng().permutation(5).tolist()
    datasets.DatasetDict({"train": whole.select(shuffled), "test": whole}).save_to_disk(str(tmp_path / "set"))
    for name, order in (("train", shuffled), ("test", range(5))):
        source = hf.Hf(str(tmp_path / "set"), split=name)
        found, bad = split(everything(source))
        assert [item.image.read(10**6) for item in found] == [data[n] for n in order] and not bad
        assert [item.texts for item in found] == [(rows["caption"][n],) if rows["caption"][n] else () for n in order]
        assert [item.key for item in found] == [f"{name}:{n}" for n in range(1, 6)]
        assert [listing._unpack(json.loads(json.dumps(listing._pack(item)))) for item in found] == found
    assert list(source.parts().values()) == list(hf.Hf(str(tmp_path / "set"), split="test").parts().values())
    with pytest.raises(ValueError, match="--input=.*set: --split=val: there are train, test"):
        hf.Hf(str(tmp_path / "set"), split="val").parts()
    with pytest.raises(ValueError, match="set/train: --split=test: there are train"):
        whole.info.splits, whole.info.dataset_name = None, None
        datasets.Dataset(whole.data, split="train").save_to_disk(str(tmp_path / "set" / "train"))
        hf.Hf(str(tmp_path / "set" / "train"), split="test").parts()
    for columns_asked in ({"text_column": "text"}, {"image_column": "jpg"}, {"id_column": "id"}):
        (name,) = columns_asked.values()
        with pytest.raises(ValueError, match=f"^--input=.*set: no column '{name}'; there are 'caption', 'image'$"):
            hf.Hf(str(tmp_path / "set"), **columns_asked).parts()
    with pytest.raises(ValueError, match="--input=.*in: "):
        (tmp_path / "in").mkdir()
        hf.Hf(str(tmp_path / "in")).parts()


@pytest.mark.parametrize("source, library", [("parquet", "pyarrow"), ("hf", "datasets")])
def test_without_its_library_a_source_says_so(tmp_path, source, library):
    code = f"import runpy, sys; sys.modules[{library!r}] = None; runpy.run_module('tools.prepare', None, '__main__')"
    done = subprocess.run([sys.executable, "-c", code, source, f"--input={tmp_path}", "--output=x"], cwd=ROOT,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and f"pip install -e .[{source}]" in done.stderr
