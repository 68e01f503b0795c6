"""Tokens in memory are checked once: when they are made, and when a training takes them."""

import numpy as np
import pytest
import tiny
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError
from var_train.data.token_sources import TokenSet
from var_train.training.transformer_stage import TransformerStageConfig, TransformerTraining
from var_transformer import Transformer

LENGTH = tiny.tokenizer().schedule.length
LABELS = np.zeros(4, np.int32)


@pytest.mark.parametrize(
    ("ids", "flipped", "named"),
    [
        (np.zeros((4, LENGTH), np.int64), None, "ids_nl is int64"),
        (np.zeros((3, LENGTH), np.int32), None, r"ids_nl is int32 \(3, .*\); expected int32 \(4"),
        (np.zeros((4, LENGTH), np.int32), np.zeros((4, 1), np.int32), "flipped_nl is int32"),
    ],
)
def test_ids_of_another_shape_or_dtype_are_refused(ids, flipped, named):
    with pytest.raises(InputError, match=named):
        TokenSet(ids, LABELS, flipped)


@pytest.mark.parametrize("value", [-1, tiny.tokenizer().vocab_size])
def test_ids_out_of_range_are_refused_before_training(value):
    tokenizer, model = Tokenizer(tiny.tokenizer()), Transformer(tiny.transformer(depth=1))
    good = TokenSet(np.zeros((4, LENGTH), np.int32), LABELS)
    bad = TokenSet(np.full((4, LENGTH), value, np.int32), LABELS)
    for train, val in ((bad, good), (good, bad)):
        with pytest.raises(InputError, match=r"ids_nl lie in .*; expected \[0, "):
            TransformerTraining(model, tokenizer, train, val, TransformerStageConfig(batch=2), 0)
