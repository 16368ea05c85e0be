import numpy as np
import pytest

from rnnlm.errors import UsageError
from rnnlm.evaluation.attention import attention_weights


@pytest.mark.parametrize("kind", ["translator", "feeding_translator"])
@pytest.mark.parametrize("output", ["the cat sings", ""])
def test_each_output_token_spreads_its_look_over_the_source(request, kind, output):
    weights_TS, source, target = attention_weights(request.getfixturevalue(kind), "the grey  cat", output)
    assert weights_TS.shape == (len(target), len(source))
    np.testing.assert_allclose(weights_TS.sum(1), 1.0, rtol=1e-5)
    assert source[-1] == target[-1] == "<eos>"
    assert "".join(source[:-1]).replace(" ", "") == "thegreycat"


def test_models_without_attention_are_refused(blind_translator, text_generator):
    for generator in (blind_translator, text_generator):
        with pytest.raises(UsageError, match="no attention"):
            attention_weights(generator, "a cat", "a cat")


def test_the_model_is_left_as_it_was(translator):
    attention_weights(translator, "a cat", "a cat")
    assert not translator.model.attention._forward_hooks
