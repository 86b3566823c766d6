"""Memory of an inference job, and the tokens that fit into what is free."""

from __future__ import annotations

from workers.forecasting.inference_cost import ServedModel

MODEL = ServedModel(
    weights=134_515_008, dtype_bytes=4, layers=30, cached_width=384, hidden_size=576, mlp_width=1536,
    vocab_size=49_152, max_positions=8192,
)  # fmt: skip


def test_memory_is_near_what_the_bundled_model_took() -> None:
    # Resident with 8 answers in 4,096 tokens: 1,217 MB in float32.
    assert 1.0 < MODEL.memory_bytes(4096, 8) / 1_217e6 < 1.15


def test_as_many_tokens_are_allowed_as_fit() -> None:
    whole, least = MODEL.memory_bytes(16_384, 16), MODEL.memory_bytes(1024, 16)
    assert MODEL.fitting_tokens(whole, 16_384, 16) == 16_384
    fewer = MODEL.fitting_tokens((whole + least) // 2, 16_384, 16)
    assert 1024 < fewer < 16_384
    assert MODEL.memory_bytes(fewer, 16) <= (whole + least) // 2 < MODEL.memory_bytes(fewer + 64, 16)
    assert [MODEL.fitting_tokens(room, 16_384, 16) for room in (least, least - 1)] == [1024, 0]


def test_adapters_count_twice_in_fp32() -> None:
    assert MODEL.memory_bytes(1024, 1, 1000) - MODEL.memory_bytes(1024, 1) == 8000
