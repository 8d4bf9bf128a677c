"""The inputs of `skep_testkit::inputs`, computed in numpy: the same values for the same kind, seed, batch and sequence.

    from skep_inputs import inputs
    inputs("bert-tiny", seed=1, batch=2, sequence=16)   # {"input_ids": array, ...}

Takes `kind[:parameter=value,...]` as `skep generate` does. BF16 is given as its bits, uint16, since numpy lacks the type.
"""

import numpy as np

SEED_STEP, INPUT_STEP, ELEMENT_STEP = 0xD1B54A32D192ED03, 0x8CB92BA72F3D8DD7, 0x9E3779B97F4A7C15
SMALL = 50
VOCAB = {"bert": 30522, "bert-base": 30522, "bert-tiny": 1000}
FIXED = {
    "cnn": ("input", [3, 32, 32]),
    "text-recogniser": ("input.1", [1, 32, 100]),
    "resnet50": ("data", [3, 224, 224]),
    "mobilenetv2": ("data", [3, 224, 224]),
}
INTEGERS = {name: np.dtype(name) for name in ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")}


def bits(seed, number, elements):
    """64 bits for each of `elements` of input `number`."""
    mask = (1 << 64) - 1
    z = np.uint64((seed * SEED_STEP + number * INPUT_STEP) & mask) + elements.astype(np.uint64) * np.uint64(ELEMENT_STEP)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def unit(z):
    """Floats in [-1, 1)."""
    return (z >> np.uint64(40)).astype(np.float32) * np.float32(2**-23) - np.float32(1)


def bf16_bits(values):
    """The nearest bfloat16, ties to even, as its bits."""
    word = values.view(np.uint32)
    return ((word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def elementwise(z, datatype, operand, number):
    """Inputs of identity and addsub."""
    integers = z % np.uint64(SMALL) + np.uint64(SMALL if number == 0 else 0) if operand else z
    if datatype in INTEGERS:
        return integers.astype(INTEGERS[datatype])
    if datatype == "bytes":
        if operand:
            texts = [str(v) for v in integers.ravel()]
        else:
            texts = [f"{int(v):016x}"[: int(v) % 17] for v in integers.ravel()]
        return np.array([text.encode() for text in texts], object).reshape(z.shape)
    if datatype == "bool":
        return (z & np.uint64(1)).astype(bool)
    if datatype == "bf16":
        return bf16_bits(unit(z))
    return unit(z).astype({"fp16": np.float16, "fp32": np.float32, "fp64": np.float64}[datatype])


def inputs(kind, seed, batch, sequence=16):
    """{name: array} for a model of `kind`."""
    name, _, text = kind.partition(":")
    given = dict(part.split("=") for part in text.split(",") if part)

    def numbers(number, shape):
        return bits(seed, number, np.arange(int(np.prod(shape)))).reshape(shape)

    if name in VOCAB:
        shape, at = [batch, sequence], np.arange(sequence)
        first = [bits(seed, number, np.arange(batch) * sequence)[:, None] for number in range(3)]
        kept = sequence - (first[1] % np.uint64(sequence // 2 + 1)).astype(int)
        after = (first[2] % np.uint64(sequence)).astype(int)
        vocab = np.uint64(int(given.get("vocab", VOCAB[name])))
        return {
            "input_ids": (numbers(0, shape) % vocab).astype(np.int64),
            "attention_mask": (at < kept).astype(np.int64),
            "token_type_ids": (at > after).astype(np.int64),
        }
    if name in FIXED:
        return {FIXED[name][0]: unit(numbers(0, [batch, *FIXED[name][1]]))}
    if name == "mlp":
        return {"input": unit(numbers(0, [batch, int(given.get("layers", "256").split("x")[0])]))}
    family, _, datatype = name.partition("-")
    datatype = datatype or {"identity": "fp32", "addsub": "int32"}[family]
    count = {"identity": 1, "addsub": 2}[family]
    shape = [batch, int(given.get("width", 16))]
    return {f"INPUT{n}": elementwise(numbers(n, shape), datatype, family == "addsub", n) for n in range(count)}
