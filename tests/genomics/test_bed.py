"""BED files: columns, splits, and errors that name the line."""

import gzip

import pytest

from longseq.core.errors import DataError
from longseq.genomics.data.annotation import read_features
from longseq.genomics.data.bed import Region, read_bed


@pytest.fixture
def bed(tmp_path):
    def write(text, name="r.bed"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return write


def test_columns(bed, tiny):
    text = "# comment\ntrack name=x\nbrowser position\n\n"
    text += "tiny1\t0\t10\ttrain\nchrtiny2 5 2000 peak 7.5 -\r\n"
    for name in ("r.bed", "r.bed.gz"):
        assert read_bed(bed(text, name), tiny) == [
            Region("tiny1", 0, 10, "train", None, ".", "train"),
            Region("tiny2", 5, 2000, "peak", 7.5, "-", None),
        ]
    assert read_bed(bed("anything\t1\t2\tval\n"))[0].split == "valid"


def test_blocks_are_parts(bed, tiny):
    line = "tiny1\t100\t200\tg\t0\t+\t100\t200\t0\t{}\n"
    blocks = {
        "2\t10,20,\t0,80,": ((100, 110), (180, 200)),
        "2\t10,20\t0,80": ((100, 110), (180, 200)),
        "1\t100,\t0,": (),
        "name\t7\t+": (),  # six columns beside six
    }
    for text, parts in blocks.items():
        (found,) = read_bed(bed(line.format(text)), tiny)
        assert (found.start, found.end, found.parts) == (100, 200, parts)
        (feature,) = read_features(bed(line.format(text)), tiny)
        assert len(feature) == (30 if parts else 100)
    for text in ("3\t10,20\t0,80", "2\t10,21\t0,80", "2\t10,20\t1,80", "2\t90,20\t0,80"):
        with pytest.raises(DataError, match=r"line 1: blocks .* from 100 to 200"):
            read_bed(bed(line.format(text)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tiny1\t5\t5", "start 5 is not before end 5"),
        ("tiny1\t9\t5", "start 9 is not before end 5"),
        ("tiny1\t-1\t5", "start -1 is negative"),
        ("tiny1\t0\t3001", "end 3001 is beyond tiny1, which has 3000 bases"),
        ("tiny1\t0\tx", "must be whole numbers"),
        ("tiny1\t1.5\t3", "must be whole numbers"),
        ("tiny3\t0\t3", "no record 'tiny3' .did you mean"),
        ("tiny1\t0", "2 columns"),
        ("tiny1\t0\t5\tx\thigh", "score 'high'"),
        ("tiny1\t0\t5\tx\t1\t*", "strand"),
    ],
)
def test_errors_name_the_line(line, message, bed, tiny):
    with pytest.raises(DataError, match=rf"r\.bed: line 3: .*{message}"):
        read_bed(bed(f"#c\ntiny1\t0\t5\n{line}\n"), tiny)


def test_no_regions_and_not_text(bed, tmp_path):
    with pytest.raises(DataError, match="no regions"):
        read_bed(bed("# only a comment\n"))
    (tmp_path / "b.bed").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="not a text file"):
        read_bed(tmp_path / "b.bed")
    cut = bed("tiny1\t0\t5\n" * 1000, "cut.bed.gz")
    cut.write_bytes(cut.read_bytes()[:-12])
    with pytest.raises(DataError, match="truncated or damaged gzip"):
        read_bed(cut)
