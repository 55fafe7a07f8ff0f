"""Batches from records: the right rows, whatever the hosts, and nothing damaged ever trained on."""

import io
import re
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from absl import logging
from PIL import Image

from itit import config as config_lib
from itit.data import images, order, records
from itit.data.streams import Streams
from itit.tasks import of_stream
from tests.helpers.common import ROOT, shared_data

S, N, L, CODEBOOK, VOCAB = 16, 4, 8, 50, 60


def make_config(**values):
    defaults = dict(
        preset="nano", num_image_tokens=N, num_text_tokens=L, codebook_size=CODEBOOK, vocab_size=VOCAB,
        bos_id=VOCAB - 1, t2i_batch=4, i2t_batch=2, t2i2t_batch=0, i2t2i_batch=0, t2i2t="off", i2t2i="off",
        num_decode_steps=2, image_size=S, seed=7,
    )  # fmt: skip
    return config_lib.replace(config_lib.Config(), **(defaults | values)).resolve()


def ids_record(number, **changed):
    """A record whose ids say which one it is."""
    text = np.zeros(L, np.int64)
    text[:3] = (2 + number // 50, 2 + number % 50, 1)
    features = {"image_ids": np.full(N, number % CODEBOOK), "text_ids": text, "key": str(number)} | changed
    return records.encode_example({name: value for name, value in features.items() if value is not None})


def numbers(text_ids):
    return (text_ids[:, 0] - 2) * 50 + text_ids[:, 1] - 2


def write(path, payloads):
    with records.RecordWriter(str(path)) as writer:
        for payload in payloads:
            writer.write(payload)
    return str(path)


def write_ids(folder, count=40, shards=3, name="pairs", **changed):
    for shard in range(shards):
        write(
            folder / f"{name}-{shard}", [ids_record(n, **changed) for n in range(count) if n * shards // count == shard]
        )
    return f"{folder}/{name}-*"


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def ids_of(streams, name, step):
    """Task -> the ids of its rows at a step."""
    rows, source = streams.rows(step), streams.sources[name]
    return {task: source.ids(rows[task]) for task in of_stream(name) if task in rows}


def test_rows_are_those_of_the_order(tmp_path):
    pattern = write_ids(tmp_path)
    config = make_config(paired_data=pattern, text_data=pattern, image_data=pattern, t2i2t_batch=3, t2i2t="full",
                         t2t_batch=1, i2t2i_batch=2, i2t2i="half", i2i_batch=5)  # fmt: skip
    streams = Streams(config)
    for step in np.random.default_rng().integers(0, 1000, 5).tolist():
        batch = streams.batch(step)
        for name, lanes in {"paired_data": 2, "text_data": 1, "image_data": 1}.items():
            tasks = of_stream(name)
            sizes = [getattr(config.objective, f"{task}_batch") for task in tasks]
            reference = order.Order(7, name, [14, 13, 13], 4, lanes)
            for task, places in zip(tasks, order.positions(step, sizes, lanes), strict=True):
                expected = reference.ids(places)
                fields = {key.split("/")[1]: value for key, value in batch.items() if key.startswith(task + "/")}
                assert all(value.dtype == np.int64 for value in fields.values())
                if name != "image_data":
                    np.testing.assert_array_equal(numbers(fields["text_ids"]), expected)
                if name != "text_data":
                    np.testing.assert_array_equal(fields["image_ids"], np.repeat(expected[:, None] % CODEBOOK, N, 1))
                assert len(fields) == (2 if name == "paired_data" else 1)
    assert streams.num_bad == 0
    assert [line.split(":")[0] for line in streams.describe().splitlines()] == [
        "paired_data",
        "image_data",
        "text_data",
    ]


@pytest.mark.parametrize("num_hosts", [2, 4])
def test_hosts_share_the_global_batch(tmp_path, num_hosts):
    config = make_config(paired_data=write_ids(tmp_path), i2t_batch=8)
    whole = Streams(config).batch(3)
    parts = [Streams(config, host, num_hosts).batch(3) for host in range(num_hosts)]
    for key, value in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), value)
    with pytest.raises(ValueError, match="--t2i_batch=4: must be a multiple of the number of hosts, 3"):
        Streams(config, 0, 3)


def test_an_epoch_is_each_pair_once(tmp_path):
    streams = Streams(make_config(paired_data=write_ids(tmp_path, count=42)))
    batches = [streams.batch(step) for step in range(7)]
    found = [numbers(batch[key]) for batch in batches for key in ("t2i/text_ids", "i2t/text_ids")]
    assert sorted(np.concatenate(found)) == list(range(42))


def test_damage_is_skipped_named_and_counted(tmp_path, monkeypatch):
    """Each kind of damage, with every row that follows it sound."""
    good = np.array([5, 6, 1, 0, 0, 0, 0, 0])
    damages = {
        "no 'image_ids'": dict(image_ids=None),
        "has 3 ids, must have 4 (--num_image_tokens)": dict(image_ids=[1, 2, 3]),
        "holds 50, must be in [0, 50)": dict(image_ids=[1, 2, 50, 3]),
        "holds -1": dict(image_ids=[1, -1, 2, 3]),
        "must be integers": dict(image_ids=b"abc"),
        "no 'text_ids'": dict(text_ids=None),
        "has 7 ids": dict(text_ids=good[:7]),
        "holds 60": dict(text_ids=np.array([60, *good[1:]])),
        "empty text": dict(text_ids=np.array([1, 0, 0, 0, 0, 0, 0, 0])),
        "then one EOS": dict(text_ids=np.full(8, 5)),
        "words, then": dict(text_ids=np.array([5, 0, 0, 0, 0, 0, 0, 0])),
        "then PAD": dict(text_ids=np.array([5, 1, 0, 9, 0, 0, 0, 0])),
    }
    payloads = [ids_record(number) for number in range(20)]
    payloads += [ids_record(20 + i, **changed) for i, changed in enumerate(damages.values())]
    payloads += [b"\x0a\x7fno example"]
    path = write(tmp_path / "pairs", payloads)
    flipped = records.index(path)[7]
    with open(path, "r+b") as file:
        file.seek(int(flipped.sum()))
        byte = file.read(1)[0]
        file.seek(int(flipped.sum()))
        file.write(bytes([byte ^ 4]))
    lines = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: lines.append(message % args))
    streams = Streams(make_config(paired_data=path, max_bad_records=14))
    for step in range(14):
        batch = streams.batch(step)
        for key in ("t2i/text_ids", "i2t/text_ids"):
            assert set(numbers(batch[key])) <= set(range(20)) - {7}
    assert streams.num_bad == len(lines) == 14
    text = "\n".join(lines)
    for cause in (*damages, "not a tf.train.Example", "checksum of the payload"):
        assert cause in text
    assert f"{path}@{flipped[0]}: the checksum" in text
    repeat = Streams(make_config(paired_data=path, max_bad_records=14))
    for key, value in batch.items():
        np.testing.assert_array_equal(repeat.batch(13)[key], value)
    for limit in (0, 13):
        streams = Streams(make_config(paired_data=path, max_bad_records=limit))
        with pytest.raises(ValueError, match=f"pairs@.*, above --max_bad_records={limit}") as caught:
            [streams.batch(step) for step in range(14)]
        assert "\n" not in str(caught.value)


def test_a_damaged_row_becomes_the_next_in_order(tmp_path):
    bad = set(np.random.default_rng().choice(30, 8, replace=False).tolist())
    items = [ids_record(number, **({"image_ids": [1]} if number in bad else {})) for number in range(30)]
    streams = Streams(make_config(paired_data=write(tmp_path / "a", items), max_bad_records=8))
    sequence = order.Order(7, "paired_data", [30], 4, 2).ids(np.arange(300))
    for step in range(10):
        batch = streams.batch(step)
        found = np.concatenate([numbers(batch[f"{task}/text_ids"]) for task in ("t2i", "i2t")])
        places = np.concatenate(order.positions(step, [4, 2], 2))
        assert found.tolist() == [next(n for n in sequence[place::2] if n not in bad) for place in places]


def test_a_broken_framing_counts_once(tmp_path):
    pattern = write_ids(tmp_path, count=30, shards=2)
    path = tmp_path / "pairs-0"
    data = bytearray(path.read_bytes())
    data[records.index(str(path))[10, 0]] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"pairs-0@\d+: .*rest of the file.*max_bad_records=0"):
        Streams(make_config(paired_data=pattern))
    streams = Streams(make_config(paired_data=pattern, max_bad_records=1))
    found = {n for step in range(9) for n in numbers(streams.batch(step)["t2i/text_ids"]).tolist()}
    assert streams.num_bad == 1 and found <= set(range(10)) | set(range(15, 30))


def test_all_records_damaged(tmp_path):
    damaged = ids_record(1, image_ids=[CODEBOOK] * N)
    path = write(tmp_path / "a", [ids_record(0), *[damaged] * 4])
    streams = Streams(make_config(paired_data=path, max_bad_records=99, t2i_batch=5))
    assert set(numbers(streams.batch(0)["t2i/text_ids"])) == {0}
    path = write(tmp_path / "a", [damaged] * 4)
    with pytest.raises(ValueError, match="--paired_data: all 4 records are damaged"):
        Streams(make_config(paired_data=path, max_bad_records=99)).batch(0)
    path = write(tmp_path / "a", [b"\x0a\x7fno example"] * 4)
    with pytest.raises(ValueError, match="--paired_data: all 4 records are damaged"):
        Streams(make_config(paired_data=path, max_bad_records=99))


def test_wrong_data_stops_before_the_first_step(tmp_path):
    write(tmp_path / "empty", [])
    write_ids(tmp_path, name="ids")
    raw = {"image_ids": None, "image": b"x"}
    write_ids(tmp_path, name="raw", **raw)
    write_ids(tmp_path, name="text", image_ids=None)
    cases = {
        "--paired_data is empty: --t2i_batch=4 needs it": dict(),
        "--text_data is empty: --t2t_batch=2 needs it": dict(paired_data=f"{tmp_path}/ids-*", t2t_batch=2),
        "--paired_data: no file matches": dict(paired_data=f"{tmp_path}/absent-*"),
        "no records in 1 file": dict(paired_data=f"{tmp_path}/empty"),
        "some shards hold 'image_ids', others only 'image'": dict(paired_data=f"{tmp_path}/ids-*,{tmp_path}/raw-*"),
        "its records hold neither 'image_ids' nor 'image'": dict(paired_data=f"{tmp_path}/text-*"),
        "--eval_data: no file matches": dict(paired_data=f"{tmp_path}/ids-*", eval_data="/absent"),
        "--random_flip: --paired_data holds ready image_ids": dict(paired_data=f"{tmp_path}/ids-*", random_flip=True),
    }
    for message, values in cases.items():
        with pytest.raises(ValueError, match=re.escape(message)) as caught:
            Streams(make_config(**values))
        assert "\n" not in str(caught.value)


def test_sample_batch(tmp_path):
    pattern = write_ids(tmp_path)
    only_texts = dict(text_data=pattern, t2i_batch=0, i2t_batch=0, t2t_batch=2)
    with pytest.raises(ValueError, match="give --eval_data or --paired_data"):
        Streams(make_config(**only_texts)).sample_batch(3)
    others = write_ids(tmp_path, name="others", image_ids=np.full(N, 13))
    for values, same in (({"paired_data": pattern}, False), ({"paired_data": pattern, "eval_data": others}, True)):
        streams = Streams(make_config(**only_texts, **values))
        batch = streams.sample_batch(5)
        assert batch["image_ids"].shape == (5, N) and batch["text_ids"].shape == (5, L)
        assert (batch["image_ids"] == 13).all() == same
        np.testing.assert_array_equal(streams.sample_batch(5)["text_ids"], batch["text_ids"])


def raw_config(tmp_path, texts, pictures=None, **values):
    vocabulary = str(shared_data() / "t5" / "spiece.model")
    rng = np.random.default_rng()
    pictures = pictures or [png(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)) for _ in texts]
    items = [records.encode_example({"image": p, "text": t}) for p, t in zip(pictures, texts, strict=True)]
    path = write(tmp_path / "raw", items)
    sizes = dict(vocabulary=vocabulary, vocab_size=32128, bos_id=32100)
    return make_config(paired_data=path, **(sizes | values)), pictures


def test_raw_pictures_and_texts(tmp_path):
    pytest.importorskip("tensorflow_text")
    texts = [f"number {n} of {'many ' * n}" for n in range(12)]
    config, pictures = raw_config(tmp_path, texts)
    streams = Streams(config)
    batch = streams.batch(1)
    ids = np.concatenate(list(ids_of(streams, "paired_data", 1).values()))
    pieces = sentencepiece.SentencePieceProcessor(model_file=config.data.vocabulary)
    for row, record_id in enumerate(ids):
        task, row = ("t2i", row) if row < 4 else ("i2t", row - 4)
        np.testing.assert_array_equal(batch[f"{task}/images"][row], images.decode(pictures[record_id], S, 10**6))
        words = [*pieces.encode(texts[record_id])[: L - 1], 1]
        assert batch[f"{task}/text_ids"][row].tolist() == words + [0] * (L - len(words))
    assert streams.num_cut == sum(len(pieces.encode(texts[i])) > L - 1 for i in ids)
    assert "raw" not in streams.describe() and "image and text" in streams.describe()


def test_half_of_the_pictures_are_flipped(tmp_path):
    pytest.importorskip("tensorflow_text")
    config, _ = raw_config(tmp_path, [f"number {n}" for n in range(60)], t2i_batch=50)
    plain = Streams(config).batch(2)["t2i/images"]
    config = config_lib.replace(config, random_flip=True)
    flipped = Streams(config).batch(2)["t2i/images"]
    turned = (flipped == plain[:, :, ::-1]).all((1, 2, 3))
    assert 10 < turned.sum() < 40
    np.testing.assert_array_equal(flipped[~turned], plain[~turned])
    halves = [Streams(config, host, 2).batch(2)["t2i/images"] for host in range(2)]
    np.testing.assert_array_equal(np.concatenate(halves), flipped)


def test_raw_damage(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_text")
    sound = png(np.zeros((9, 9, 3), np.uint8))
    texts = [*[f"number {n}" for n in range(20)], "", " \n", b"\xff\xfe", "\u200b"]
    pictures = [*[sound] * 18, b"no picture", png(np.zeros((40, 40, 3), np.uint8)), *[sound] * 4]
    lines = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: lines.append(message % args))
    config, _ = raw_config(tmp_path, texts, pictures, max_bad_records=6, max_image_pixels=1000)
    streams = Streams(config)
    for step in range(8):
        assert (streams.batch(step)["t2i/text_ids"][:, 0] > 1).all()
    assert streams.num_bad == len(lines) == 6
    config, _ = raw_config(tmp_path, ["\u200b"] * 3, max_bad_records=9)
    with pytest.raises(ValueError, match="all 3 records are damaged"):
        Streams(config).batch(0)
    for cause, count in {"empty text": 3 + 3, "UTF-8": 1, "not a picture": 1, "40 x 40 pixels": 1}.items():
        assert sum(cause in line for line in lines) == count, lines


def test_texts_need_a_vocabulary(tmp_path):
    with pytest.raises(ValueError, match="^--vocabulary is empty: --paired_data holds texts"):
        Streams(raw_config(tmp_path, ["a", "b"], vocabulary="")[0])


@pytest.mark.parametrize(("name", "count"), [("num_image_tokens", 9), ("num_text_tokens", L - 1)])
def test_ready_ids_of_another_length_are_told_from_damaged_records(tmp_path, name, count):
    """Where all that shards begin with has it; one alone is a damaged record."""
    pattern = write_ids(tmp_path)
    form, had = {"num_image_tokens": ("image_ids", N), "num_text_tokens": ("text_ids", L)}[name]
    message = f"--{name}={count}: the {form} of --paired_data ({tmp_path}/pairs-0) have {had}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Streams(make_config(paired_data=pattern, max_bad_records=99, **{name: count}))
    alone = write(tmp_path / "alone", [ids_record(0, **{form: np.ones(count, np.int64)}), ids_record(1)])
    streams = Streams(make_config(paired_data=alone, max_bad_records=9))
    for step in range(10):
        streams.batch(step)
    assert streams.num_bad == 1


def test_ready_ids_need_no_tensorflow(tmp_path):
    pattern = write_ids(tmp_path)
    code = f"""
import sys
from tests.data.test_streams import Streams, make_config
batch = Streams(make_config(paired_data={pattern!r})).batch(0)
assert batch["t2i/text_ids"].shape == (4, {L})
assert not [name for name in sys.modules if name.split(".")[0] in ("tensorflow", "tensorflow_text", "torch")]
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
