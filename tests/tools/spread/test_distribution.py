"""Tasks shared by processes and hosts, kept when they are done, and what is refused."""

import functools
import json
import threading

import pytest

from tests.core.test_storage import root  # noqa: F401 (a fixture)
from tests.helpers.flaky_storage import gcs  # noqa: F401 (a fixture)
from tools.spread import distribution
from tools.spread.distribution import Distribution, Stage, results


def squares(log, tasks, num_workers, advance):
    """Appends each task to a file, and how many it was given at once."""
    for task in tasks:
        if task == "bad":
            raise ValueError("a bad one")
        with open(log, "a") as file:
            file.write(json.dumps([task, len(tasks)]) + "\n")
        yield task**2


def done(log):
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_few_tasks_are_one_call_and_many_are_one_each(tmp_path):
    function = functools.partial(squares, str(tmp_path / "log"))
    assert list(results(function, [], Distribution(), 1)) == []
    assert list(results(function, [1, 2, 3], Distribution(), 1)) == [1, 4, 9]
    assert list(results(function, list(range(8)), Distribution(), 2)) == [n**2 for n in range(8)]
    assert done(tmp_path / "log")[:3] == [[1, 3], [2, 3], [3, 3]]
    assert sorted(done(tmp_path / "log")[3:]) == [[n, 1] for n in range(8)]


def test_what_is_done_is_not_done_again(tmp_path, root):  # noqa: F811
    (tmp_path / "local").mkdir()
    function, seen = functools.partial(squares, str(tmp_path / "log")), []
    with pytest.raises(ValueError, match="a bad one"):
        Stage(root, "part", function, [1, 2, "bad", 4], Distribution(), 1).run(seen.append)
    assert seen == [1, 4]
    assert Stage(root, "part", function, [1, 2, 3, 4], Distribution(), 1).run(seen.append) == [1, 4, 9, 16]
    assert [task for task, _ in done(tmp_path / "log")] == [1, 2, 3, 4] and seen == [1, 4, 1, 4, 9, 16]


def test_hosts_share_the_tasks_and_wait_for_each_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(distribution, "POLLS", (0.01, 0.02))
    found = {}

    def host(index):
        function = functools.partial(squares, str(tmp_path / f"log{index}"))
        stage = Stage(str(tmp_path), "part", function, list(range(7)), Distribution(host_index=index, num_hosts=3), 1)
        found[index] = stage.run()

    threads = [threading.Thread(target=host, args=(index,)) for index in (2, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == dict.fromkeys(range(3), [n**2 for n in range(7)])
    assert [[task for task, _ in done(tmp_path / f"log{index}")] for index in range(3)] == [[0, 3, 6], [1, 4], [2, 5]]
    lone = Stage(str(tmp_path), "other", functools.partial(squares, str(tmp_path / "log")), [5, 6],
                 Distribution(host_index=1, num_hosts=2), 1)  # fmt: skip
    assert lone.run(wait=False) == [None, 36]


@pytest.mark.parametrize("values, message", [
    ({"host_index": 2, "num_hosts": 2}, "--host_index=2: must be from 0 to --num_hosts=2 less one"),
    ({"host_index": -1, "num_hosts": 2}, "--host_index=-1: must be"),
    ({"num_hosts": 0}, "--num_hosts=0: must be at least 1"),
    ({"num_hosts": 2, "distributor": "ray"}, "--num_hosts=2: not with --distributor=ray"),
    *(({"task_needs": text}, f"--task_needs={text}: must be") for text in ("", "CPU", "CPU:x", ":1", "CPU:0")),
])  # fmt: skip
def test_what_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Distribution(**values).check()


def test_needs():
    assert Distribution(task_needs="CPU:4, TPU:0.5").needs() == {"CPU": 4, "TPU": 0.5}
