"""FID: the distance against closed forms and the library, statistics in parts, pictures through both networks."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from itit.backends.local import Local
from tests.helpers import foreign_weights
from tests.helpers.common import squeezenet
from tools.data.damaged import Damage
from tools.scoring import fid, frechet, picture_features


def moments(rows):
    found = frechet.Moments()
    found.add(rows)
    return found


def gaussian(mean, covariance):
    return frechet.Known(np.asarray(mean, float), np.asarray(covariance, float), 0, {})


def random_rotation(size, draw):
    return np.linalg.qr(draw.normal(size=(size, size)))[0]


def test_distance_of_commuting_gaussians():
    draw = np.random.default_rng()
    turn, a, b = random_rotation(6, draw), draw.uniform(0.1, 3, 6), draw.uniform(0, 3, 6)
    m, n = draw.normal(size=(2, 6))
    expected = np.square(m - n).sum() + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    found = frechet.distance(gaussian(m, turn @ np.diag(a) @ turn.T), gaussian(n, turn @ np.diag(b) @ turn.T))
    assert found == pytest.approx(expected, rel=1e-9)
    assert frechet.distance(gaussian([0], [[4]]), gaussian([3], [[25]])) == pytest.approx(9 + (5 - 2) ** 2)


def test_distance_of_two_by_two_gaussians_that_do_not_commute():
    # tr (CD)^1/2 of 2 x 2 matrices is sqrt(tr CD + 2 sqrt(det CD)).
    draw = np.random.default_rng()
    a, b = (x @ x.T for x in draw.normal(size=(2, 2, 2)))
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = np.trace(a) + np.trace(b) - 2 * cross
    assert frechet.distance(gaussian([0, 0], a), gaussian([0, 0], b)) == pytest.approx(expected, rel=1e-7)


def test_distance_as_the_library():
    library = pytest.importorskip("torch_fidelity.metric_fid")
    draw = np.random.default_rng()
    a, b = draw.normal(size=(200, 12)) @ draw.normal(size=(12, 12)), draw.normal(1, 2, size=(150, 12))
    theirs = library.fid_statistics_to_metric(
        *(library.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)), verbose=False
    )
    found = frechet.distance(moments(a), moments(b))
    assert found == pytest.approx(theirs[library.KEY_METRIC_FID], rel=1e-9)


def test_statistics_in_parts_with_a_large_mean():
    rows = np.random.default_rng().normal(1e4, 1e-2, size=(50, 5))
    found = frechet.Moments()
    for part in np.split(rows, [1, 8, 30]):
        found.add(part)
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(rows, rowvar=False), rtol=1e-6)
    assert found.count == 50
    with pytest.raises(ValueError, match="at least 2"):
        _ = moments(rows[:1]).covariance


def test_statistics_on_disk(tmp_path):
    found = moments(np.random.default_rng().normal(size=(9, 3)))
    found.stamp = {"extractor": "x"}
    frechet.write(str(tmp_path / "a.npz"), found)
    again = frechet.read(str(tmp_path / "a.npz"))
    assert again.count == 9 and again.stamp == {"extractor": "x"}
    assert np.array_equal(again.mean, found.mean) and np.array_equal(again.covariance, found.covariance)
    np.savez(tmp_path / "theirs.npz", mu=found.mean.astype(np.float32), sigma=found.covariance)
    assert frechet.read(str(tmp_path / "theirs.npz")).count == 0
    for bad in ({"mu": found.mean}, {"mu": found.mean, "sigma": np.zeros(3)}, {"mu": [np.nan], "sigma": [[1.0]]}):
        np.savez(tmp_path / "bad.npz", **bad)
        with pytest.raises(ValueError, match="bad.npz"):
            frechet.read(str(tmp_path / "bad.npz"))
    with pytest.raises(ValueError, match="3 and of 1 features"):
        frechet.distance(found, gaussian([0], [[1]]))


class Mean:
    """In an extractor's place: the colours of the corners."""

    name, stamp = "frechet_corners", {"extractor": "corners", "sha256": "0"}

    def __call__(self, pictures):
        self.shapes = {*getattr(self, "shapes", ()), pictures.shape}
        return pictures[:, :: pictures.shape[1] - 1, 0].reshape(len(pictures), -1).astype(np.float32)


@pytest.fixture
def folders(tmp_path):
    """Two folders of 10 and 7 random pictures, 16 x 16."""
    draw, pixels = np.random.default_rng(), {}
    for name, count in (("made", 10), ("real", 7)):
        (tmp_path / name).mkdir()
        pixels[name] = draw.integers(256, size=(count, 16, 16, 3), dtype=np.uint8)
        for i, picture in enumerate(pixels[name]):
            Image.fromarray(picture).save(tmp_path / name / f"{i}.png")
    return tmp_path, pixels


def test_measure_streams_in_batches_of_one_shape(folders):
    folder, pixels = folders
    extractor = Mean()
    found, rows = fid.measure(str(folder / "made"), extractor, batch_size=4, keep=True)
    expected = Mean()(pixels["made"])
    assert extractor.shapes == {(4, 16, 16, 3)}
    assert np.array_equal(np.sort(rows, 0), np.sort(expected, 0))
    np.testing.assert_allclose(found.mean, expected.mean(0))
    assert found.stamp["side"] == 16 and found.stamp["resize"] == "none" and found.stamp["extractor"] == "corners"
    assert "8 pixels" in fid.measure(str(folder / "made"), extractor, 8)[0].stamp["resize"]


def test_damaged_pictures_are_left_out_and_counted(folders, capsys):
    folder, pixels = folders
    (folder / "made" / "3.png").write_bytes(b"")
    (folder / "made" / "7.png").write_bytes((folder / "made" / "7.png").read_bytes()[:200])
    for side in (0, 8):
        with pytest.raises(ValueError, match="3.png: not a picture.*above --max_bad_records=0"):
            fid.measure(str(folder / "made"), Mean(), side, 4)
        with pytest.raises(ValueError, match="7.png: picture does not decode.*above --max_bad_records=1"):
            fid.measure(str(folder / "made"), Mean(), side, 4, damage=Damage(1, "pictures"))
    extractor = Mean()
    made, rows = fid.measure(str(folder / "made"), extractor, 0, 4, True, Damage(2, "pictures"))
    assert "damaged: 3.png: not a picture" in capsys.readouterr().err
    expected = Mean()(np.delete(pixels["made"], [3, 7], 0))
    assert made.count == 8 and made.stamp["damaged"] == 2 and extractor.shapes == {(4, 16, 16, 3)}
    np.testing.assert_array_equal(np.sort(rows, 0), np.sort(expected, 0))
    real = fid.measure(str(folder / "real"), Mean())
    assert "damaged" not in real[0].stamp
    assert "2 damaged left out" in fid.line(fid.compare((made, rows), real, Mean(), force=True))
    for path in (folder / "made").iterdir():
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match="made: no usable pictures, 10 are damaged"):
        fid.measure(str(folder / "made"), Mean(), damage=Damage(10, "pictures"))


def test_too_few_pictures_are_refused_or_marked(folders):
    folder, _ = folders
    made, real = (fid.measure(str(folder / name), Mean()) for name in ("made", "real"))
    with pytest.raises(ValueError, match="10 pictures.*below 2048.*--force"):
        fid.compare(made, real, Mean())
    result = fid.compare(made, real, Mean(), force=True)
    assert result["too_few_pictures"] and "TOO FEW" in fid.line(result) and "FID" not in result
    assert result["frechet_corners"] == frechet.distance(made[0], real[0])
    assert json.loads(json.dumps(result))["made"]["pictures_sha256"] != result["reference"]["pictures_sha256"]


def test_what_does_not_go_together(folders):
    folder, _ = folders
    made, real = fid.measure(str(folder / "made"), Mean()), fid.measure(str(folder / "real"), Mean(), 8)
    made[0].count = real[0].count = 5000
    with pytest.raises(ValueError, match="resize: none for the pictures, 8 pixels"):
        fid.compare(made, real, Mean())
    frechet.write(str(folder / "a.npz"), made[0])
    other = Mean()
    other.stamp = {"extractor": "others", "sha256": "1"}
    with pytest.raises(ValueError, match="statistics by"):
        fid.measure(str(folder / "a.npz"), other)
    with pytest.raises(ValueError, match="need the pictures"):
        fid.measure(str(folder / "a.npz"), Mean(), keep=True)
    Image.new("RGB", (8, 8)).save(folder / "made" / "small.png")
    with pytest.raises(ValueError, match="small.png: 8 pixels wide, others 16"):
        fid.measure(str(folder / "made"), Mean())
    Image.new("RGB", (8, 9)).save(folder / "made" / "1x.png")
    with pytest.raises(ValueError, match="8 x 9 pixels is no square"):
        fid.measure(str(folder / "made"), Mean())


def test_kernel_distance_and_precision_of_equal_and_of_far_sets():
    pytest.importorskip("torch_fidelity")
    rows = np.random.default_rng().normal(size=(60, 4)).astype(np.float32)
    made, far = (moments(rows), rows), (moments(rows + 50), rows + 50)
    same = fid.compare(made, made, Mean(), True, True, force=True)
    apart = fid.compare(made, far, Mean(), True, True, force=True)
    assert same["precision"] == same["recall"] == 1 and apart["precision"] == apart["recall"] == 0
    assert abs(same["KID"]) < 0.5 < apart["KID"] and same["KID_subset"] == 60


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """torch-fidelity's Inception with random weights, as its file has it."""
    library = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    torch.seed()

    class Random(library.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda *a, **k: None)
        network = Random("inception-v3-compat", ["2048"])
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    foreign_weights.write_anything(path, network.state_dict())
    return path, network


def test_inception_from_a_file(inception):
    path, network = inception
    with pytest.raises(ValueError, match="SHA-256.*6726825d.*--force"):
        picture_features.inception(str(path), Local("cpu"))
    extractor = picture_features.inception(str(path), Local("cpu"), trusted=True)
    pictures = np.random.default_rng().integers(256, size=(2, 40, 40, 3), dtype=np.uint8)
    expected = network(torch.from_numpy(pictures).movedim(-1, 1))[0]
    np.testing.assert_allclose(extractor(pictures), expected, rtol=1e-5, atol=1e-5)
    assert extractor.name == "frechet_other_inception" and extractor(pictures).shape == (2, 2048)


def test_other_features_are_never_called_fid(folders):
    _, pixels = folders
    extractor = picture_features.other(str(squeezenet()), Local("cpu"))
    large = pixels["made"][:2].repeat(4, 1).repeat(4, 2)
    assert extractor.name == "frechet_squeezenet" and extractor(large).shape == (2, 512)
    for given in (("", ""), ("a", "b")):
        with pytest.raises(ValueError, match="one of the two"):
            picture_features.of(*given, Local("cpu"), False)
