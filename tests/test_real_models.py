# Trained networks of others, converted and run end to end. No framework is needed; single features
# of the converters are tested in test_convert_*.py.
"""Each is held against a replay in double precision, and against what its own project computed."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

from tidegate import convert, reference

MODELS = pathlib.Path(__file__).parent / "models"
# To the float64 replay, of outputs of a size of about 1.
ATOL = 1e-5
# To the recorded outputs, which were computed in float32 too.
RECORDED_ATOL = 3e-5


def load(name: str) -> dict[str, Any]:
    with np.load(MODELS / f"{name}.npz") as arrays:
        model = dict(arrays)
    model["meta"] = json.loads(str(model["meta_json"]))
    return model


def replay(layer: Any, x: np.ndarray, state: Any = None, lengths: Any = None) -> Any:
    """y and the last state in double precision, from the same weights. x is (T, N, I)."""
    network = reference.from_layer(layer)
    y, state_n, _ = network.forward(layer.params, x, state, lengths=lengths)
    return y, state_n


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def test_silero_vad_keeps_its_state_over_a_long_stream() -> None:
    model = load("silero_vad")
    weights = {name: model[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    lstm = convert.from_torch(weights)
    assert repr(lstm) == "LSTM(128, 128)"

    def probability(h: np.ndarray) -> np.ndarray:
        return sigmoid(np.maximum(h, 0) @ model["out_weight"][0, :, 0] + model["out_bias"][0])

    frames = np.tile(model["lstm_in"], (20, 1))  # two minutes at 32 ms a frame
    wanted, (_, wanted_c) = replay(lstm, frames[:, None])
    stream = lstm.stream()
    h = np.stack([stream.step(frame[None]) for frame in frames])
    np.testing.assert_allclose(h, wanted, rtol=0, atol=ATOL)
    np.testing.assert_allclose(probability(h), probability(wanted), rtol=0, atol=ATOL)
    c = stream.state[1]
    assert np.abs(model["lstm_c"]).max() > 40  # the point of this model
    np.testing.assert_allclose(c, wanted_c, rtol=ATOL, atol=ATOL)

    first = slice(len(model["lstm_h"]))
    np.testing.assert_allclose(h[first, 0], model["lstm_h"], rtol=0, atol=RECORDED_ATOL)
    np.testing.assert_allclose(probability(h)[first, 0], model["prob"], rtol=0, atol=RECORDED_ATOL)


def test_g2p_en_decodes_to_the_same_phonemes() -> None:
    model = load("g2p_en_gru")
    encoder, decoder = (
        convert.from_torch(
            {
                f"{kind}_{side}": model[f"{part}_{kind[0]}_{side}"]
                for kind in ("weight", "bias")
                for side in ("ih", "hh")
            }
        )
        for part in ("enc", "dec")
    )
    assert repr(encoder) == repr(decoder) == "GRU(256, 256)"
    meta = model["meta"]
    table = {grapheme: i for i, grapheme in enumerate(meta["graphemes"])}
    spelt = [[table[letter] for letter in word] + [table["</s>"]] for word in meta["words"]]
    lengths = np.array([len(word) for word in spelt])
    np.testing.assert_array_equal(lengths, model["enc_len"])
    x = np.zeros((lengths.max(), len(spelt), 256), np.float32)
    for n, word in enumerate(spelt):
        x[: len(word), n] = model["enc_emb"][word]
    y, h = encoder(x, lengths=lengths)
    wanted_y, wanted_h = replay(encoder, x, lengths=lengths)
    np.testing.assert_allclose(y, wanted_y, rtol=0, atol=ATOL)

    stream = decoder.stream(batch=len(spelt))
    stream.state = h
    wanted_state = wanted_h
    start, stop = (meta["phoneme_table"].index(mark) for mark in ("<s>", "</s>"))
    phonemes = np.full(len(spelt), start)
    decoded = []
    for step in range(20):
        embedded = model["dec_emb"][phonemes]
        logits = stream.step(embedded) @ model["fc_w"].T + model["fc_b"]
        wanted, wanted_state = replay(decoder, embedded[None], wanted_state)
        wanted_logits = wanted[0] @ model["fc_w"].T.astype(float) + model["fc_b"]
        scale = np.abs(wanted_logits).max()
        np.testing.assert_allclose(logits, wanted_logits, rtol=0, atol=ATOL * scale)
        alive = step < model["dec_len"]
        recorded = model["dec_logits"][alive, min(step, model["dec_logits"].shape[1] - 1)]
        np.testing.assert_allclose(logits[alive], recorded, rtol=0, atol=RECORDED_ATOL * scale)
        phonemes = logits.argmax(axis=1)
        decoded.append(phonemes)
    for n, wanted_word in enumerate(meta["phonemes"]):
        word = [int(step[n]) for step in decoded]
        word = word[: word.index(stop)] if stop in word else word
        assert " ".join(meta["phoneme_table"][i] for i in word) == wanted_word


def test_g2pm_runs_its_ragged_batch() -> None:
    model = load("g2pm_bilstm")
    weights = {name: model[name] for name in model if name.startswith(("weight_", "bias_"))}
    lstm = convert.from_torch(weights, batch_first=True)
    assert repr(lstm) == "LSTM(64, 32, bidirectional=True, batch_first=True)"
    x, lengths = model["x"].copy(), model["lengths"]
    valid = np.arange(x.shape[1]) < lengths[:, None]
    x[~valid] = np.nan
    y, _ = lstm(x, lengths=lengths)
    wanted, _ = replay(lstm, x.transpose(1, 0, 2), lengths=lengths)
    np.testing.assert_allclose(y, wanted.transpose(1, 0, 2), rtol=0, atol=ATOL)
    np.testing.assert_allclose(y[valid], model["out"][valid], rtol=0, atol=RECORDED_ATOL)


@pytest.mark.parametrize("chunk", [1, 7, 280])
def test_nsnet2_runs_both_of_its_layers(chunk: int) -> None:
    model = load("nsnet2_gru")
    grus = [
        convert.onnx_gru(*(model[f"gru{number}_{role}"] for role in "WRB"), linear_before_reset=1)
        for number in (1, 2)
    ]
    assert [repr(gru) for gru in grus] == ["GRU(400, 400)"] * 2
    x = model["gru1_x"]
    streams = [gru.stream() for gru in grus]
    y = np.empty_like(x)
    for begin in range(0, len(x), chunk):
        part = x[begin : begin + chunk]
        for stream in streams:
            part = stream.run(part) if len(part) > 1 else stream.step(part[0])[None]
        y[begin : begin + chunk] = part
    wanted, _ = replay(grus[1], replay(grus[0], x)[0])
    np.testing.assert_allclose(y, wanted, rtol=0, atol=ATOL)
    np.testing.assert_allclose(y, model["gru2_Y"][:, 0], rtol=0, atol=RECORDED_ATOL)


@pytest.mark.parametrize("name", ["silero_vad", "g2p_en_gru", "g2pm_bilstm", "nsnet2_gru"])
def test_every_model_tells_its_licence(name: str) -> None:
    licence = load(name)["meta"]["license"]
    assert licence.split()[0] in (MODELS / "README.md").read_text(encoding="utf-8")
