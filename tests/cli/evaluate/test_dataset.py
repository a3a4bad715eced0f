"""Which photos there are, and what their classes are called."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from service.cli.evaluate.dataset import Names, Photo, read, spread
from service.errors import ConfigurationError
from service.labels import ClassLabel, imagenet_classes

#: The first five of ImageNet's validation set (LOC_val_solution.csv), whose ILSVRC2012_IDs are 490, 361, 171, 822, 297.
VALIDATION = {
    "ILSVRC2012_val_00000001": ("n01751748", 490),
    "ILSVRC2012_val_00000002": ("n09193705", 361),
    "ILSVRC2012_val_00000003": ("n02105855", 171),
    "ILSVRC2012_val_00000004": ("n04263257", 822),
    "ILSVRC2012_val_00000005": ("n03125729", 297),
}
WNIDS = [wnid for wnid, _ in VALIDATION.values()]


def names(photos: list[Photo]) -> list[str]:
    return [photo.answer for photo in photos]


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    folder = tmp_path / "val"
    folder.mkdir()
    for name in VALIDATION:
        (folder / f"{name}.JPEG").touch()
    (folder / "README.txt").touch()
    return folder


def class_list(path: Path) -> Path:
    """A list of a thousand classes with the five where the kit has them; the rest is filled up in our order."""
    given = {number: wnid for wnid, number in VALIDATION.values()}
    others = (entry.wnid for entry in imagenet_classes() if entry.wnid not in WNIDS)
    lines = [f"{given.get(number) or next(others)} {number} some_name" for number in range(1, 1001)]
    path.write_text("\n".join(lines))
    return path


def test_sub_folders_are_classes_and_what_is_below_belongs_to_them(tmp_path: Path) -> None:
    for name in ("b/x.png", "b/images/y.JPEG", "a/z.webp", "a/notes.txt", "empty/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    photos = read(tmp_path)
    assert names(photos) == ["a", "b", "b"]
    assert [photo.path.name for photo in photos] == ["z.webp", "y.JPEG", "x.png"]


@pytest.mark.parametrize(
    "text",
    [
        "ImageId,PredictionString\n"
        + "".join(f"{n},{w} 1 2 3 4 {w} 5 6 7 8 \n" for n, (w, _) in VALIDATION.items()),
        "".join(f"{name}.JPEG {wnid}\n" for name, (wnid, _) in VALIDATION.items()),
        "filename,label\r\n" + "".join(f"{name}.JPEG, {wnid}\r\n" for name, (wnid, _) in VALIDATION.items()),
        "".join(f"{name}.JPEG\t{wnid}\t0\t32\t44\t62\n" for name, (wnid, _) in VALIDATION.items()),
    ],
    ids=["kaggle", "spaces", "csv", "tabs"],
)
def test_ground_truth_by_name(flat: Path, tmp_path: Path, text: str) -> None:
    truth = tmp_path / "truth.txt"
    truth.write_text(text, newline="")
    assert names(read(flat, truth)) == WNIDS


def test_ground_truth_is_found_beside_the_folder(flat: Path) -> None:
    with pytest.raises(ConfigurationError, match="--ground-truth"):
        read(flat)
    lines = "".join(f"{name},{wnid} 1 2 3 4\n" for name, (wnid, _) in VALIDATION.items())
    (flat.parent / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + lines)
    assert names(read(flat)) == WNIDS


def test_labels_may_have_spaces_and_photos_without_a_line_are_not_judged(flat: Path, tmp_path: Path) -> None:
    truth = tmp_path / "truth.csv"
    truth.write_text("ILSVRC2012_val_00000001.JPEG,sea snake\nILSVRC2012_val_00000003,230\nelsewhere.jpg,7\n")
    assert names(read(flat, truth)) == ["sea snake", "230"]
    truth.write_text("elsewhere.jpg,7\n")
    with pytest.raises(ConfigurationError, match="names none of the photos"):
        read(flat, truth)


def test_the_development_kits_numbers_need_its_list(flat: Path, tmp_path: Path) -> None:
    kit = tmp_path / "ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    truth = kit / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("".join(f"{number}\n" for _, number in VALIDATION.values()))
    with pytest.raises(ConfigurationError) as refusal:
        read(flat)
    for way_out in ("map_clsloc.txt", "meta.mat", "--class-list", "LOC_val_solution.csv", "--ground-truth"):
        assert way_out in str(refusal.value)
    assert names(read(flat, truth, class_list(tmp_path / "list.txt"))) == WNIDS
    class_list(kit / "map_clsloc.txt")
    assert names(read(flat)) == WNIDS
    (kit / "map_clsloc.txt").write_text("n01751748 490 sea_snake\n")
    with pytest.raises(ConfigurationError, match="no list of the 1,000 classes"):
        read(flat)


def test_a_mat_file_without_scipy_says_what_to_do(flat: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("scipy"):
        pytest.skip("SciPy is installed here")
    truth = tmp_path / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("490\n")
    (tmp_path / "meta.mat").touch()
    with pytest.raises(ConfigurationError, match="pip install scipy"):
        read(flat)


def test_folders_with_nothing_to_judge_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no photos"):
        read(tmp_path)
    (tmp_path / "truth.txt").write_text("a.jpg 1\n")
    with pytest.raises(ConfigurationError, match="there are none"):
        read(tmp_path, tmp_path / "truth.txt")


def test_a_class_is_found_by_wnid_then_label_then_id() -> None:
    known = Names(
        [
            ClassLabel(281, "n02123045", "tabby"),
            ClassLabel(285, "n02124075", "Egyptian cat"),
            ClassLabel(134, "n02012849", "crane"),
            ClassLabel(517, "n03126707", "crane"),
        ]
    )
    assert (
        known.find("n02124075")
        == known.find("egyptian_cat")
        == known.find("285")
        == known.find("00285")
        == 285
    )
    assert known.find("n00000000") is known.find("dog") is known.find("3") is None
    with pytest.raises(ConfigurationError, match="two of the model's classes"):
        known.find("crane")
    assert Names([ClassLabel(0, None, "5"), ClassLabel(5, None, "0")]).find("5") == 0


def test_a_limit_takes_from_everywhere() -> None:
    assert spread(range(100), 5) == [0, 20, 40, 60, 80]
    assert spread(range(3), 5) == [0, 1, 2]
    assert spread(range(3), None) == [0, 1, 2]
