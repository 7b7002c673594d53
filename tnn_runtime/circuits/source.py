"""C source of a circuit on pixels: a few loops over tables, which compile in seconds however many gates there are.

Values are bit-sliced: a word has one bit or gate for 64 images, and a few words side by side fill a register. Images
are transposed in blocks of 8 x 8 bytes, pixels compared with their thresholds and packed into words, gates evaluated
level by level and kind by kind, and the votes of a class added up in bit planes by carry-save adders (Harley and
Seal), so that nothing is ever done image by image but the last step.
"""

from __future__ import annotations

from collections.abc import Iterable

from tnn_runtime.circuits.circuit import KINDS, Circuit
from tnn_runtime.circuits.pixels import PixelCircuit

__all__ = ["ENTRY", "c_source"]

ENTRY = "run"
"""The function: ``int run(const uint8_t *images, int64_t count, float *logits, float *embedding)``.

It returns 0, or 1 if there is no memory.
"""

_AT_ONCE = 8
"""Votes that are added at once."""


def c_source(of: PixelCircuit) -> str:
    """Return C (C11 with the vectors of GCC and Clang) that computes logits and embeddings of images."""
    circuit = of.circuit
    height, width, channels = of.shape
    index = "uint16_t" if circuit.size + 2 <= 1 << 16 else "uint32_t"
    votes = _votes(circuit)
    planes = max(4, max((len(some) for both in votes for some in both), default=1).bit_length() + 1)
    tables = [
        _table("uint32_t", "offset", of.offsets),
        _table("uint16_t", "least", of.least),
        _table("float", "value", (f"{float(value).hex()}f" for value in of.values.flat)),
        _table("uint64_t", "spread", (f"0x{_spread(octet):x}u" for octet in range(256))),
        *(
            _table(index, f"{side}{number}", wires)
            for number, level in enumerate(circuit.levels)
            for side, wires in (("left", level.left), ("right", level.right))
        ),
        *(
            _table(index, f"{side}{label}", some)
            for label, both in enumerate(votes)
            for side, some in zip(("on", "off"), both, strict=True)
        ),
    ]
    constants = {
        "PIXELS": height * width,
        "CHANNELS": channels,
        "BITS": len(circuit.bits),
        "SIZE": circuit.size,
        "CLASSES": len(votes),
        "PLANES": planes,
        "TEMPERATURE": f"{float(of.temperature).hex()}f",
        "INDEX": index,
    }
    defines = "".join(f"#define {name} {value}\n" for name, value in constants.items())
    tally = "".join(
        f"        tally(v, on{label}, {len(on)}, off{label}, {len(off)}, "
        f"{int(circuit.constants[label]) + int((circuit.signs[label] < 0).sum())}, counts + {label});\n"
        for label, (on, off) in enumerate(votes)
    )
    return "\n".join([_HEAD, defines, *tables, _BODY, _gates(circuit), _RUN.replace("@TALLY@", tally)])


def _votes(circuit: Circuit) -> list[tuple[list[int], list[int]]]:
    """Return for each class the places that count where they are on, and those that count where they are off.

    Both are filled up with the row after the last value, which is never on.
    """
    found = []
    for places, signs in zip(circuit.votes, circuit.signs, strict=True):
        both = places[signs > 0].tolist(), places[signs < 0].tolist()
        found.append(tuple(some + [circuit.size] * (-len(some) % _AT_ONCE) for some in both))
    return found


def _gates(circuit: Circuit) -> str:
    lines, end = [], len(circuit.bits)
    for number, level in enumerate(circuit.levels):
        for (_, text), part in zip(KINDS.values(), level.parts(), strict=True):
            if part.start < part.stop:
                value = text.format(a=f"v[left{number}[i]]", b=f"v[right{number}[i]]")
                lines.append(f"    for (int i = {part.start}; i < {part.stop}; i++) v[{end} + i] = {value};\n")
        end += len(level.left)
    return f"static void gates(word *restrict v)\n{{\n    (void)v;\n{''.join(lines)}}}\n"


def _table(kind: str, name: str, values: Iterable[object]) -> str:
    shown = [str(value) for value in values] or ["0"]
    lines = ",\n".join(",".join(shown[start : start + 16]) for start in range(0, len(shown), 16))
    return f"static const {kind} {name}[] = {{\n{lines}\n}};"


def _spread(octet: int) -> int:
    """Return a word whose byte k is bit k of an octet."""
    return sum((octet >> bit & 1) << 8 * bit for bit in range(8))


_HEAD = """\
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512BW__) || defined(__SSE2__)
#include <immintrin.h>
#endif
#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "this program is for little-endian processors, and for GCC or Clang"
#endif

#define LANES 4
typedef uint64_t word __attribute__((vector_size(8 * LANES), aligned(8 * LANES)));
"""

_BODY = """\
/* Rows of 8 bytes to columns: byte j of row i becomes byte i of row j. */
static inline void transpose(uint64_t x[8])
{
    for (int i = 0; i < 8; i += 2) {
        const uint64_t a = x[i], b = x[i + 1], m = 0x00ff00ff00ff00ffu;
        x[i] = (a & m) | (b & m) << 8;
        x[i + 1] = (a >> 8 & m) | (b & ~m);
    }
    for (int i = 0; i < 8; i += (i & 1) ? 3 : 1) {
        const uint64_t a = x[i], b = x[i + 2], m = 0x0000ffff0000ffffu;
        x[i] = (a & m) | (b & m) << 16;
        x[i + 2] = (a >> 16 & m) | (b & ~m);
    }
    for (int i = 0; i < 4; i++) {
        const uint64_t a = x[i], b = x[i + 4], m = 0x00000000ffffffffu;
        x[i] = (a & m) | (b & m) << 32;
        x[i + 4] = (a >> 32 & m) | (b & ~m);
    }
}

/* At most 64 images to columns of 64 bytes, one for each value of a pixel. */
static void columns(const uint8_t *images, int count, uint8_t (*restrict column)[64])
{
    enum { VALUES = PIXELS * CHANNELS };
    for (int s = 0; s < count; s += 8) {
        const int rows = count - s < 8 ? count - s : 8;
        const uint8_t *block = images + (size_t)s * VALUES;
        for (int p = 0; p < VALUES; p += 8) {
            const int width = VALUES - p < 8 ? VALUES - p : 8;
            uint64_t x[8] = {0};
            if (width == 8)
                for (int i = 0; i < rows; i++) memcpy(&x[i], block + (size_t)i * VALUES + p, 8);
            else
                for (int i = 0; i < rows; i++) memcpy(&x[i], block + (size_t)i * VALUES + p, (size_t)width);
            transpose(x);
            for (int j = 0; j < width; j++) memcpy(&column[p + j][s], &x[j], 8);
        }
    }
}

/* Which of 64 values are at least so large. */
static inline uint64_t reaches(const uint8_t *column, int least)
{
    if (least == 0) return ~(uint64_t)0;
    if (least > 255) return 0;
#if defined(__AVX512BW__)
    return _cvtmask64_u64(_mm512_cmpge_epu8_mask(_mm512_loadu_si512(column), _mm512_set1_epi8((char)least)));
#elif defined(__SSE2__)
    uint64_t found = 0;
    const __m128i t = _mm_set1_epi8((char)least);
    for (int k = 0; k < 4; k++) {
        const __m128i x = _mm_loadu_si128((const __m128i *)(column + 16 * k));
        const int mask = _mm_movemask_epi8(_mm_cmpeq_epi8(_mm_max_epu8(x, t), x));
        found |= (uint64_t)(uint32_t)mask << 16 * k;
    }
    return found;
#else
    uint64_t found = 0;
    for (int k = 0; k < 64; k++) found |= (uint64_t)(column[k] >= least) << k;
    return found;
#endif
}

/* A full adder: a, b and c are replaced by their sum, which is left in *a, and a carry. */
static inline word add(word *a, word b, word c)
{
    const word half = *a ^ b, carry = (*a & b) | (half & c);
    *a = half ^ c;
    return carry;
}

/* Count how many of n values are on, n a multiple of 8, in bit planes. */
static void count(const word *v, const INDEX *places, int n, word planes[PLANES])
{
    word held[PLANES];
    unsigned has = 0;
    memset(planes, 0, PLANES * sizeof(word));
    for (int i = 0; i < n; i += 8) {
        const INDEX *p = places + i;
        const word two0 = add(planes, v[p[0]], v[p[1]]), two1 = add(planes, v[p[2]], v[p[3]]);
        const word four0 = add(planes + 1, two0, two1);
        const word two2 = add(planes, v[p[4]], v[p[5]]), two3 = add(planes, v[p[6]], v[p[7]]);
        const word four1 = add(planes + 1, two2, two3);
        word carry = add(planes + 2, four0, four1);
        int level = 3;
        for (; has >> level & 1; level++) {
            has &= ~(1u << level);
            carry = add(planes + level, held[level], carry);
        }
        has |= 1u << level;
        held[level] = carry;
    }
    for (int level = 3; level < PLANES; level++) {
        if (!(has >> level & 1)) continue;
        word carry = held[level];
        for (int upper = level; upper < PLANES; upper++) {
            const word sum = planes[upper] ^ carry;
            carry &= planes[upper];
            planes[upper] = sum;
        }
    }
}

/* Add to the count of each image what planes say of it, times a sign. */
static void gather(const word planes[PLANES], int sign, int32_t (*restrict counts)[CLASSES])
{
    for (int lane = 0; lane < LANES; lane++)
        for (int group = 0; group < 64; group += 8) {
            uint64_t low = 0, middle = 0, high = 0;
            for (int plane = 0; plane < PLANES; plane++) {
                const uint64_t eight = spread[planes[plane][lane] >> group & 255];
                if (plane < 8) low |= eight << plane;
                else if (plane < 16) middle |= eight << (plane - 8);
                else high |= eight << (plane - 16);
            }
            for (int k = 0; k < 8; k++) {
                const int32_t found = (int32_t)(low >> 8 * k & 255) | (int32_t)(middle >> 8 * k & 255) << 8
                    | (int32_t)(high >> 8 * k & 255) << 16;
                *counts[64 * lane + group + k] += sign * found;
            }
        }
}

/* Count the votes for a class: those that are on, and those that are off. */
static void tally(const word *v, const INDEX *on, int ons, const INDEX *off, int offs, int32_t constant,
    int32_t *counts)
{
    int32_t (*rows)[CLASSES] = (int32_t (*)[CLASSES])counts;
    word planes[PLANES];
    for (int s = 0; s < 64 * LANES; s++) *rows[s] = constant;
    if (ons) {
        count(v, on, ons, planes);
        gather(planes, 1, rows);
    }
    if (offs) {
        count(v, off, offs, planes);
        gather(planes, -1, rows);
    }
}
"""

_RUN = """\
int run(const uint8_t *images, int64_t total, float *logits, float *embedding)
{
    enum { VALUES = PIXELS * CHANNELS, BLOCK = 64 * LANES };
    const size_t align = sizeof(word);
    word *v = aligned_alloc(align, (SIZE + 1) * sizeof(word));
    uint8_t (*column)[64] = calloc(VALUES, 64);
    int32_t *counts = malloc(sizeof(int32_t) * BLOCK * CLASSES);
    if (!v || !column || !counts) {
        free(v);
        free(column);
        free(counts);
        return 1;
    }
    memset(v, 0, (SIZE + 1) * sizeof(word));
    for (int64_t start = 0; start < total; start += BLOCK) {
        const int images_here = total - start < BLOCK ? (int)(total - start) : BLOCK;
        for (int lane = 0; 64 * lane < images_here; lane++) {
            const int here = images_here - 64 * lane < 64 ? images_here - 64 * lane : 64;
            columns(images + (size_t)(start + 64 * lane) * VALUES, here, column);
            for (int i = 0; i < BITS; i++) v[i][lane] = reaches(column[offset[i]], least[i]);
        }
        gates(v);
@TALLY@
        for (int s = 0; s < images_here; s++)
            for (int label = 0; label < CLASSES; label++)
                logits[(start + s) * CLASSES + label] = (float)counts[s * CLASSES + label] / TEMPERATURE;
    }
    for (int64_t s = 0; s < total; s++)
        for (int channel = 0; channel < CHANNELS; channel++) {
            const uint8_t *image = images + s * VALUES + channel;
            float *out = embedding + s * VALUES + (int64_t)channel * PIXELS;
            const float *values = value + 256 * channel;
            for (int p = 0; p < PIXELS; p++) out[p] = values[image[(int64_t)p * CHANNELS]];
        }
    free(v);
    free(column);
    free(counts);
    return 0;
}
"""
