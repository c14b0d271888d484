from __future__ import annotations

import pytest
import torch
from small_models import golden

from xmatch.training.metrics import batchwise_accuracy, batchwise_recall, in_batch_ranks


@pytest.mark.parametrize("name", ["token_case_A", "token_case_B_margin0.5"])
def test_token_metrics_equal_the_original(name: str) -> None:
    case = golden("loss_metric")[name]
    text, image, mask = (torch.tensor(case[key], dtype=torch.float32) for key in ("lang", "visn", "mask"))
    assert in_batch_ranks(text, image).tolist() == case["rank_of_gt_per_token(strict)"]
    assert batchwise_accuracy(text, image, mask) == pytest.approx(case["token_accuracy_top1"], abs=1e-4)
    for k, value in case["batchwise_recall_as_implemented"].items():
        assert batchwise_recall(text, image, mask, int(k), "original") == pytest.approx(value, abs=1e-4)
    for k, value in case["true_recall"].items():
        assert batchwise_recall(text, image, mask, int(k)) == pytest.approx(value, abs=1e-4)


def test_sentence_metrics_equal_the_original() -> None:
    case = golden("loss_metric")["sent_case_C"]
    text, image = torch.tensor(case["lang"])[:, None], torch.tensor(case["visn"])
    mask = torch.ones(len(text), 1)
    assert in_batch_ranks(text, image)[:, 0].tolist() == case["rank_of_gt(strict)"]
    for k, value in case["sent_batchwise_recall_as_implemented"].items():
        assert batchwise_recall(text, image, mask, int(k), "original") == pytest.approx(value, abs=1e-4)
    for k, value in case["true_recall"].items():
        assert batchwise_recall(text, image, mask, int(k)) == pytest.approx(value, abs=1e-4)
