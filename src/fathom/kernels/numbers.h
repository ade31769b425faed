// Numbers as they are stored (float, or the upper half of one) and as they are computed with (float).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

struct bf16 {
    uint16_t bits;
};

inline float wide(float x) { return x; }
inline float wide(bf16 x) {
    uint32_t bits = uint32_t(x.bits) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

// To the nearest, ties to even. A NaN that arithmetic makes stays one.
template <class T> inline T narrow(float x);
template <> inline float narrow<float>(float x) { return x; }
template <> inline bf16 narrow<bf16>(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    bits += 0x7fffu + ((bits >> 16) & 1);
    return bf16{uint16_t(bits >> 16)};
}

// e^x within 2 units in the last place, in a form that compilers turn into vectors. NaN stays NaN.
inline float fast_exp(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    float n = std::floor(x * 1.44269504f + 0.5f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = (int32_t(n) + 127) << 23;
    float scale;
    std::memcpy(&scale, &bits, 4);
    return p * scale;
}

// Scratch space of a thread, 64-byte aligned, kept from call to call.
template <int slot, class T> inline T *scratch(size_t count) {
    static thread_local std::vector<char> space;
    if (space.size() < count * sizeof(T) + 64) space.resize(count * sizeof(T) + 64);
    return reinterpret_cast<T *>((reinterpret_cast<uintptr_t>(space.data()) + 63) & ~uintptr_t(63));
}
