"""examples/score.py: predictions in parts that survive a crash."""

import pathlib
import runpy

import numpy as np
import pandas as pd
import pytest

import skve
from tests.toys import image_files, toy_classifier, toy_images

SCORE = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "examples" / "score.py"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a model, and one of photographs."""
    folder = tmp_path_factory.mktemp("score")
    X, y = toy_images()
    clf = toy_classifier("bundled:efficientnet_lite0", image_size=32, layers="last:1", max_epochs=1).fit(X, y)
    clf.save(folder / "model")
    (folder / "photos" / "of" / "today").mkdir(parents=True)
    files = image_files(X[:7], folder / "photos" / "of" / "today")
    (folder / "photos" / "notes.txt").write_text("no photograph")
    return folder, sorted(map(str, files))


def whole(scores):
    return pd.concat([pd.read_csv(path, index_col=0) for path in sorted(scores.glob("part-*.csv"))])


def expected(folder, files):
    return skve.load(folder / "model").predict_proba(files)


def check(table, folder, files):
    assert table["X"].tolist() == files
    assert table.index.tolist() == list(range(len(files)))
    proba = expected(folder, files)
    np.testing.assert_allclose(table.filter(like="p(").to_numpy(), proba, atol=1e-6)
    assert {"total", "epistemic", "novelty"} < set(table.columns)


def test__score__killed_between_parts__goes_on_and_doubles_nothing(saved, tmp_path, monkeypatch):
    folder, files = saved
    arguments = [str(folder / "model"), str(folder / "photos"), str(tmp_path), "--rows", "3", "--probabilities"]
    real, written = SCORE["write"], []

    def dies(scores, path):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path.name)
        real(scores, path)

    monkeypatch.setitem(SCORE["main"].__globals__, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        SCORE["main"](arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part-000000.csv", "settings.json"]
    monkeypatch.setitem(SCORE["main"].__globals__, "write", real)
    before = (tmp_path / "part-000000.csv").stat().st_mtime_ns
    SCORE["main"](arguments)
    assert (tmp_path / "part-000000.csv").stat().st_mtime_ns == before
    check(whole(tmp_path), folder, files)


def test__write__fails_half_way__no_part_and_no_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(pd.DataFrame, "to_csv", lambda self, path: (pathlib.Path(path).write_text("half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        SCORE["write"](pd.DataFrame({"a": [1]}), tmp_path / "part-000000.csv")
    assert list(tmp_path.iterdir()) == []


def test__score__two_workers__each_item_once(saved, tmp_path):
    folder, files = saved
    pd.DataFrame({"path": files, "other": 1}).to_csv(tmp_path / "items.csv", index=False)
    for share in ("0/2", "1/2"):
        SCORE["main"](
            [
                str(folder / "model"),
                str(tmp_path / "items.csv"),
                str(tmp_path / "scores"),
                *["--column", "path", "--rows", "2", "--share", share, "--probabilities"],
            ]
        )
    check(whole(tmp_path / "scores"), folder, files)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--rows", "2"], "were made with --rows 3, got 2"),
        (["--rows", "3", "--format", "parquet"], "were made with --format csv, got parquet"),
        (["--rows", "3", "--share", "2/2"], "--share must be from 0/2 to 1/2, got 2/2"),
    ],
)
def test__score__goes_on_with_other_options__error_and_no_part_is_doubled(saved, tmp_path, capsys, changed, message):
    folder, _ = saved
    arguments = [str(folder / "model"), str(folder / "photos"), str(tmp_path)]
    SCORE["main"]([*arguments, "--rows", "3"])
    before = sorted(tmp_path.iterdir())
    with pytest.raises(SystemExit):
        SCORE["main"]([*arguments, *changed])
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test__score__parquet__as_csv(saved, tmp_path):
    pytest.importorskip("pyarrow")
    folder, files = saved
    pd.DataFrame({"path": files}).to_parquet(tmp_path / "items.parquet")
    SCORE["main"](
        [
            str(folder / "model"),
            str(tmp_path / "items.parquet"),
            str(tmp_path / "scores"),
            *["--column", "path", "--rows", "4", "--format", "parquet", "--probabilities"],
        ]
    )
    found = [pd.read_parquet(path) for path in sorted((tmp_path / "scores").glob("part-*.parquet"))]
    assert [len(part) for part in found] == [4, 3]
    check(pd.concat(found), folder, files)
