"""Figures that the papers print, to set beside one's own.

Recalls are per cent at 1, 5 and 10, as printed (one decimal). `source` says where a figure was read; rows marked
`RECALLED` were written from memory of the paper and not checked against it: look them up before you claim parity.
SelfAlign prints tables too; only its relative gains were at hand, so it has no row.
"""

from __future__ import annotations

from typing import NamedTuple

from xmatch.errors import InputError

VSE_INFTY = "Chen et al., CVPR 2021 (VSE-infinity), paper and supplement"
RECALLED = "recalled, not checked"
INDEXED = "CxC paper, two values seen in an index page, the others recalled, not checked"


class Published(NamedTuple):
    """One row of a retrieval table.

    Attributes:
        model: whose figures.
        image: image features; an ensemble averages the similarities of two models.
        text: text encoder.
        is_ensemble: of two models.
        i2t: image-to-text recall at 1, 5 and 10, in per cent.
        t2i: text-to-image recall at 1, 5 and 10, in per cent.
        printed_rsum: the sum of the six as printed; None where the table has none.
        source: where it was read.
    """

    model: str
    image: str
    text: str
    is_ensemble: bool
    i2t: tuple[float, float, float]
    t2i: tuple[float, float, float]
    printed_rsum: float | None
    source: str

    @property
    def rsum(self) -> float:
        """As printed, else the sum of the six."""
        return round(sum(self.i2t) + sum(self.t2i), 1) if self.printed_rsum is None else self.printed_rsum


class PublishedCxc(NamedTuple):
    """One row of the CxC retrieval table: recall at 1 and 5 of each task, in per cent."""

    model: str
    i2t: tuple[float, float]
    t2i: tuple[float, float]
    t2t: tuple[float, float]
    i2i: tuple[float, float]
    source: str


class PublishedCorrelation(NamedTuple):
    """One row of the CxC correlation table: sampled Spearman times 100."""

    model: str
    sts: float
    sis: float
    sits: float
    source: str


PUBLISHED: dict[str, tuple[Published, ...]] = {
    "flickr30k": (
        Published(
            "VSE++ (re-run by VSE-infinity)",
            "ResNet-152 ImageNet grid",
            "BiGRU",
            False,
            (64.4, 87.3, 93.1),
            (49.3, 77.5, 84.7),
            456.3,
            VSE_INFTY,
        ),
        Published(
            "VSE-infinity",
            "ResNet-152 ImageNet grid",
            "BiGRU",
            False,
            (77.1, 94.5, 97.1),
            (58.5, 84.1, 89.6),
            500.9,
            VSE_INFTY,
        ),
        Published(
            "VSE++ (re-run by VSE-infinity)",
            "BUTD region",
            "BiGRU",
            False,
            (62.2, 86.6, 92.3),
            (45.7, 73.6, 81.9),
            442.3,
            VSE_INFTY,
        ),
        Published(
            "VSE-infinity", "BUTD region", "BiGRU", False, (76.5, 94.2, 97.7), (56.4, 83.4, 89.9), 498.1, VSE_INFTY
        ),
        Published(
            "VSE-infinity", "BUTD grid", "BiGRU", False, (77.9, 93.7, 97.4), (57.5, 83.4, 90.2), 500.2, VSE_INFTY
        ),
        Published(
            "VSE-infinity",
            "BUTD region + grid",
            "BiGRU",
            True,
            (80.7, 96.4, 98.3),
            (60.8, 86.3, 92.3),
            514.8,
            VSE_INFTY,
        ),
        Published(
            "VSE++ (re-run by VSE-infinity)",
            "BUTD region",
            "BERT",
            False,
            (63.4, 87.2, 92.7),
            (45.6, 76.4, 84.4),
            449.7,
            VSE_INFTY,
        ),
        Published(
            "VSE-infinity", "BUTD region", "BERT", False, (81.7, 95.4, 97.6), (61.4, 85.9, 91.5), 513.5, VSE_INFTY
        ),
        Published("VSE-infinity", "BUTD grid", "BERT", False, (81.5, 97.1, 98.5), (63.7, 88.3, 93.2), 522.3, VSE_INFTY),
        Published(
            "VSE-infinity", "BUTD region + grid", "BERT", True, (85.3, 97.2, 98.9), (66.7, 89.9, 94.0), 532.0, VSE_INFTY
        ),
        Published(
            "VSE++ (re-run by VSE-infinity)",
            "WSL grid",
            "BERT",
            False,
            (80.9, 96.6, 98.9),
            (65.2, 89.5, 93.7),
            524.8,
            VSE_INFTY,
        ),
        Published("VSE-infinity", "WSL grid", "BERT", False, (88.4, 98.3, 99.5), (74.2, 93.7, 96.8), 550.9, VSE_INFTY),
        Published("VSE-infinity", "WSL grid", "BERT", True, (88.7, 98.9, 99.8), (76.1, 94.5, 97.1), 555.1, VSE_INFTY),
        Published(
            "VSE++",
            "ResNet-152 ImageNet, fine-tuned",
            "GRU",
            False,
            (52.9, 80.5, 87.2),
            (39.6, 70.1, 79.5),
            None,
            VSE_INFTY,
        ),
        Published("SCAN", "BUTD region", "BiGRU", True, (67.4, 90.3, 95.8), (48.6, 77.7, 85.2), None, VSE_INFTY),
        Published("VSRN", "BUTD region", "GRU", True, (71.3, 90.6, 96.0), (54.7, 81.8, 88.2), None, VSE_INFTY),
        Published("CAAN", "not stated", "not stated", False, (70.1, 91.6, 97.2), (52.8, 79.0, 87.9), None, VSE_INFTY),
        Published("IMRAM", "not stated", "not stated", True, (74.1, 93.0, 96.6), (53.9, 79.4, 87.2), None, VSE_INFTY),
        Published("CAMERA", "BUTD region", "BERT", False, (76.5, 95.1, 97.2), (58.9, 84.7, 90.2), None, RECALLED),
        Published("CAMERA", "BUTD region", "BERT", True, (78.0, 95.1, 97.9), (60.3, 85.9, 91.7), None, RECALLED),
        Published("VSRN", "BUTD region", "GRU", False, (70.4, 89.2, 93.7), (53.0, 77.9, 85.7), None, RECALLED),
    ),
    "coco_1k": (
        Published(
            "VSE++ (re-run by VSE-infinity)",
            "ResNet-152 ImageNet grid",
            "BiGRU",
            False,
            (70.9, 93.4, 97.5),
            (58.2, 87.1, 93.5),
            500.6,
            VSE_INFTY,
        ),
        Published(
            "VSE-infinity",
            "ResNet-152 ImageNet grid",
            "BiGRU",
            False,
            (76.5, 95.3, 98.5),
            (62.9, 90.6, 95.8),
            519.6,
            VSE_INFTY,
        ),
        Published(
            "VSE++ (re-run by VSE-infinity)",
            "BUTD region",
            "BiGRU",
            False,
            (68.5, 92.6, 97.1),
            (54.0, 85.6, 92.7),
            490.5,
            VSE_INFTY,
        ),
        Published(
            "VSE-infinity", "BUTD region", "BiGRU", False, (78.5, 96.0, 98.7), (61.7, 90.3, 95.6), 520.8, VSE_INFTY
        ),
        Published(
            "VSE-infinity", "BUTD grid", "BiGRU", False, (78.0, 95.8, 98.5), (62.6, 90.6, 96.0), 521.5, VSE_INFTY
        ),
        Published(
            "VSE-infinity",
            "BUTD region + grid",
            "BiGRU",
            True,
            (80.0, 97.0, 99.0),
            (64.8, 91.6, 96.5),
            528.8,
            VSE_INFTY,
        ),
        Published(
            "VSE++ (re-run by VSE-infinity)",
            "BUTD region",
            "BERT",
            False,
            (67.9, 91.9, 97.0),
            (54.0, 85.6, 92.5),
            488.9,
            VSE_INFTY,
        ),
        Published(
            "VSE-infinity", "BUTD region", "BERT", False, (79.7, 96.4, 98.9), (64.8, 91.4, 96.3), 527.5, VSE_INFTY
        ),
        Published("VSE-infinity", "BUTD grid", "BERT", False, (80.4, 96.8, 99.1), (66.4, 92.1, 96.7), 531.6, VSE_INFTY),
        Published(
            "VSE-infinity", "BUTD region + grid", "BERT", True, (82.2, 97.5, 99.5), (68.1, 92.9, 97.2), 537.4, VSE_INFTY
        ),
        Published(
            "VSE++ (re-run by VSE-infinity)",
            "WSL grid",
            "BERT",
            False,
            (79.6, 97.1, 99.0),
            (66.4, 91.1, 95.5),
            528.7,
            VSE_INFTY,
        ),
        Published("VSE-infinity", "WSL grid", "BERT", False, (84.5, 98.1, 99.4), (72.0, 93.9, 97.5), 545.4, VSE_INFTY),
        Published("VSE-infinity", "WSL grid", "BERT", True, (85.6, 98.0, 99.4), (73.1, 94.3, 97.7), 548.1, VSE_INFTY),
        Published(
            "VSE++",
            "ResNet-152 ImageNet, fine-tuned",
            "GRU",
            False,
            (64.6, 90.0, 95.7),
            (52.0, 84.3, 92.0),
            None,
            VSE_INFTY,
        ),
        Published("SCAN", "BUTD region", "BiGRU", True, (72.7, 94.8, 98.4), (58.8, 88.4, 94.8), None, VSE_INFTY),
        Published("VSRN", "BUTD region", "GRU", True, (76.2, 94.8, 98.2), (62.8, 89.7, 95.1), None, VSE_INFTY),
        Published("CAAN", "not stated", "not stated", False, (75.5, 95.4, 98.5), (61.3, 89.7, 95.2), None, VSE_INFTY),
        Published("IMRAM", "not stated", "not stated", True, (76.7, 95.6, 98.5), (61.7, 89.1, 95.0), None, VSE_INFTY),
        Published("CAMERA", "BUTD region", "BERT", False, (75.9, 95.5, 98.6), (62.3, 90.1, 95.2), None, RECALLED),
        Published("CAMERA", "BUTD region", "BERT", True, (77.5, 96.3, 98.8), (63.4, 90.9, 95.8), None, RECALLED),
        Published("VSRN", "BUTD region", "GRU", False, (74.0, 94.3, 97.8), (60.8, 88.4, 94.1), None, RECALLED),
    ),
    "coco_5k": (
        Published(
            "VSE++ (re-run by VSE-infinity)",
            "ResNet-152 ImageNet grid",
            "BiGRU",
            False,
            (46.1, 76.8, 86.6),
            (35.2, 65.6, 77.3),
            387.6,
            VSE_INFTY,
        ),
        Published(
            "VSE-infinity",
            "ResNet-152 ImageNet grid",
            "BiGRU",
            False,
            (55.1, 81.9, 89.9),
            (40.9, 70.6, 81.5),
            419.9,
            VSE_INFTY,
        ),
        Published(
            "VSE++ (re-run by VSE-infinity)",
            "BUTD region",
            "BiGRU",
            False,
            (42.9, 74.5, 85.1),
            (31.7, 61.8, 74.2),
            370.2,
            VSE_INFTY,
        ),
        Published(
            "VSE-infinity", "BUTD region", "BiGRU", False, (56.6, 83.6, 91.4), (39.3, 69.9, 81.1), 421.9, VSE_INFTY
        ),
        Published(
            "VSE-infinity", "BUTD grid", "BiGRU", False, (56.2, 83.7, 90.9), (40.8, 70.6, 81.5), 423.7, VSE_INFTY
        ),
        Published(
            "VSE-infinity",
            "BUTD region + grid",
            "BiGRU",
            True,
            (59.8, 86.1, 92.8),
            (42.7, 72.8, 83.3),
            437.5,
            VSE_INFTY,
        ),
        Published(
            "VSE++ (re-run by VSE-infinity)",
            "BUTD region",
            "BERT",
            False,
            (42.1, 72.6, 83.9),
            (31.0, 61.3, 73.7),
            364.7,
            VSE_INFTY,
        ),
        Published(
            "VSE-infinity", "BUTD region", "BERT", False, (58.3, 85.3, 92.3), (42.4, 72.7, 83.2), 434.3, VSE_INFTY
        ),
        Published("VSE-infinity", "BUTD grid", "BERT", False, (59.1, 85.9, 92.8), (44.1, 74.1, 84.0), 440.0, VSE_INFTY),
        Published(
            "VSE-infinity", "BUTD region + grid", "BERT", True, (62.5, 87.8, 94.0), (46.0, 75.8, 85.7), 451.8, VSE_INFTY
        ),
        Published(
            "VSE++ (re-run by VSE-infinity)",
            "WSL grid",
            "BERT",
            False,
            (57.9, 85.2, 92.8),
            (44.9, 74.5, 84.0),
            439.2,
            VSE_INFTY,
        ),
        Published("VSE-infinity", "WSL grid", "BERT", False, (66.4, 89.3, 94.6), (51.6, 79.3, 87.6), 468.9, VSE_INFTY),
        Published("VSE-infinity", "WSL grid", "BERT", True, (68.1, 90.2, 95.2), (52.7, 80.2, 88.3), 474.8, VSE_INFTY),
        Published(
            "VSE++",
            "ResNet-152 ImageNet, fine-tuned",
            "GRU",
            False,
            (41.3, 71.1, 81.2),
            (30.3, 59.4, 72.4),
            None,
            VSE_INFTY,
        ),
        Published("SCAN", "BUTD region", "BiGRU", True, (50.4, 82.2, 90.0), (38.6, 69.3, 80.4), None, VSE_INFTY),
        Published("VSRN", "BUTD region", "GRU", True, (53.0, 81.1, 89.4), (40.5, 70.6, 81.1), None, VSE_INFTY),
        Published("CAAN", "not stated", "not stated", False, (52.5, 83.3, 90.9), (41.2, 70.3, 82.9), None, VSE_INFTY),
        Published("IMRAM", "not stated", "not stated", True, (53.7, 83.2, 91.0), (39.7, 69.1, 79.8), None, VSE_INFTY),
        Published("CAMERA", "BUTD region", "BERT", False, (53.1, 81.3, 89.8), (39.0, 70.5, 81.5), None, RECALLED),
        Published("CAMERA", "BUTD region", "BERT", True, (55.1, 82.9, 91.2), (40.5, 71.7, 82.5), None, RECALLED),
    ),
}
CXC: tuple[PublishedCxc, ...] = (
    PublishedCxc("VSRN", (52.4, 81.9), (40.1, 71.1), (41.0, 64.8), (44.2, 76.7), VSE_INFTY),
    PublishedCxc("DE (EfficientNet-B4 + BERT)", (55.9, 84.2), (41.7, 72.3), (42.6, 64.9), (38.5, 73.6), VSE_INFTY),
    PublishedCxc("VSE-infinity, BUTD grid", (60.6, 87.4), (46.2, 76.3), (45.9, 68.7), (44.4, 78.3), VSE_INFTY),
    PublishedCxc("VSE-infinity, WSL grid", (67.9, 90.6), (53.6, 81.1), (46.7, 69.2), (51.3, 83.2), VSE_INFTY),
)
CXC_CORRELATIONS: tuple[PublishedCorrelation, ...] = (
    PublishedCorrelation("VSE++", 74.4, 73.3, 55.2, RECALLED),
    PublishedCorrelation("VSRN", 73.0, 70.1, 60.4, RECALLED),
    PublishedCorrelation("DE, image-text", 50.9, 81.3, 61.6, RECALLED),
    PublishedCorrelation("DE, image-text and text-text", 74.2, 74.5, 61.9, INDEXED),
)


def published_rows(benchmark: str) -> tuple[Published, ...] | tuple[PublishedCxc, ...]:
    """The rows of one benchmark, in the order of the tables; none where no paper at hand has figures.

    Args:
        benchmark: flickr30k, coco_1k, coco_5k or cxc; flickr8k and eccv have no rows.

    Raises:
        InputError: there is no such benchmark.
    """
    known: dict[str, tuple[Published, ...] | tuple[PublishedCxc, ...]]
    known = {"flickr8k": (), "eccv": (), "cxc": CXC, **PUBLISHED}
    if benchmark not in known:
        raise InputError(f"unknown benchmark {benchmark!r}; choose one of {', '.join(sorted(known))}.")
    return known[benchmark]
