// Rotation on a GPU for CuPy, one pass over the memory.
//
//     (x1, x2) -> (x1 cos - x2 sin, x1 sin + x2 cos)
//
// A thread turns V pairs side by side, of a few heads that share their row of the tables.  Products
// are rounded before they are added: the intrinsics with _rn in their names are never contracted.
// What lies where is told by Launch, whose twin is LAUNCH in _cuda_rotation.py.

typedef long long whole;

// Three axes of rows: outer, rows, heads.
struct Rows {
    whole lengths[3];
    whole x[3];  // steps from row to row, in elements
    whole out[3];
    whole table[3];
};

struct Launch {
    Rows q, k;
    whole q_groups;    // blocks along y that have heads of q; further ones have heads of k
    whole heads_each;  // heads that a thread takes
    whole pairs;
    whole lead;     // features before those that rotate
    whole rest;     // features that are copied, from rest_at on; 0 in place
    whole rest_at;
    whole inverse;
    whole blocks;       // of pairs that are laid out on their own
    whole starts[16];   // first pair of each
    whole sizes[16];
};

// What one instruction moves at most.
struct alignas(16) Words {
    unsigned words[4];
};

// The tests, which run on a host that has no such instructions, bring their own.
#ifdef __CUDACC__
__device__ inline float from_half(unsigned short bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}

__device__ inline unsigned short to_half(float x) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
    return bits;
}

// Of an assignment nvcc (13.0) makes four stores.
__device__ inline void write(void* to, const Words& from) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)),
                 "r"(from.words[0]), "r"(from.words[1]), "r"(from.words[2]), "r"(from.words[3])
                 : "memory");
}
#endif

struct Float16 {
    typedef unsigned short Bits;
    typedef float Real;
    static __device__ Real widen(Bits bits) { return from_half(bits); }
    static __device__ Bits narrow(Real x) { return to_half(x); }
};

struct Bfloat16 {
    typedef unsigned short Bits;
    typedef float Real;
    static __device__ Real widen(Bits bits) { return __uint_as_float((unsigned)bits << 16); }
    static __device__ Bits narrow(Real x) {
        unsigned bits = __float_as_uint(x);
        unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        return x != x ? 0x7fc0 : rounded;  // rounding up could carry a NaN over to infinity
    }
};

template <typename T>
struct Itself {
    typedef T Bits;
    typedef T Real;
    static __device__ T widen(T x) { return x; }
    static __device__ T narrow(T x) { return x; }
};

__device__ inline float product(float a, float b) { return __fmul_rn(a, b); }
__device__ inline double product(double a, double b) { return __dmul_rn(a, b); }
__device__ inline float sum(float a, float b) { return __fadd_rn(a, b); }
__device__ inline double sum(double a, double b) { return __dadd_rn(a, b); }
__device__ inline float difference(float a, float b) { return __fsub_rn(a, b); }
__device__ inline double difference(double a, double b) { return __dsub_rn(a, b); }

template <typename T>
union Pack {
    Words all;
    T each[16 / sizeof(T)];
};

// 16 bytes at once, or an element where pairs are taken one at a time: then nothing is aligned.
template <int V, typename T, int N>
__device__ inline void load(T (&to)[N], const T* from) {
    constexpr int W = V == 1 ? 1 : 16 / sizeof(T);
    for (int i = 0; i < N; i += W) {
        Pack<T> pack;
        if (V == 1)
            pack.each[0] = from[i];
        else
            pack.all = *reinterpret_cast<const Words*>(from + i);
        for (int j = 0; j < W; ++j) to[i + j] = pack.each[j];
    }
}

template <int V, typename T, int N>
__device__ inline void store(T* to, const T (&from)[N]) {
    constexpr int W = V == 1 ? 1 : 16 / sizeof(T);
    for (int i = 0; i < N; i += W)
        if (V == 1) {
            to[i] = from[i];
        } else {
            Pack<T> pack;
            for (int j = 0; j < W; ++j) pack.each[j] = from[i + j];
            write(to + i, pack.all);
        }
}

template <typename Element, int V>
__device__ inline void turn(typename Element::Bits (&a)[V], typename Element::Bits (&b)[V],
                            const typename Element::Real (&c)[V],
                            const typename Element::Real (&s)[V]) {
    for (int i = 0; i < V; ++i) {
        typename Element::Real x1 = Element::widen(a[i]), x2 = Element::widen(b[i]);
        a[i] = Element::narrow(difference(product(x1, c[i]), product(x2, s[i])));
        b[i] = Element::narrow(sum(product(x1, s[i]), product(x2, c[i])));
    }
}

// Turn V pairs of the row x into y, from a pair on.
template <typename Element, bool INTERLEAVED, int V>
__device__ inline void turn_pairs(const typename Element::Bits* x, typename Element::Bits* y,
                                  const typename Element::Real (&c)[V],
                                  const typename Element::Real (&s)[V], whole pair, whole start,
                                  whole size) {
    typename Element::Bits a[V], b[V];
    if (INTERLEAVED) {
        typename Element::Bits both[2 * V];
        load<V>(both, x + 2 * pair);
        for (int i = 0; i < V; ++i) {
            a[i] = both[2 * i];
            b[i] = both[2 * i + 1];
        }
        turn<Element, V>(a, b, c, s);
        for (int i = 0; i < V; ++i) {
            both[2 * i] = a[i];
            both[2 * i + 1] = b[i];
        }
        store<V>(y + 2 * pair, both);
    } else {
        // A block has its features at twice its first pair: all first members, then all second.
        whole first = start + pair, second = first + size;
        load<V>(a, x + first);
        load<V>(b, x + second);
        turn<Element, V>(a, b, c, s);
        store<V>(y + first, a);
        store<V>(y + second, b);
    }
}

template <typename Element, bool INTERLEAVED, int V>
__device__ void rotate_heads(const typename Element::Bits* x, typename Element::Bits* y,
                             const typename Element::Real* cos, const typename Element::Real* sin,
                             const Rows& rows, const Launch& launch, whole first_head) {
    whole row = (whole)blockIdx.x * blockDim.y + threadIdx.y;
    whole last_head = min(first_head + launch.heads_each, rows.lengths[2]);
    if (row >= rows.lengths[1]) return;
    for (whole outer = blockIdx.z; outer < rows.lengths[0]; outer += gridDim.z) {
        const typename Element::Bits* x_row = x + outer * rows.x[0] + row * rows.x[1];
        typename Element::Bits* y_row = y + outer * rows.out[0] + row * rows.out[1];
        whole table_row = outer * rows.table[0] + row * rows.table[1];
        for (whole pair = threadIdx.x * V; pair < launch.pairs; pair += blockDim.x * V) {
            whole start = 0, size = launch.sizes[0];
#pragma unroll 1
            for (int i = 1; i < launch.blocks; ++i)
                if (pair >= launch.starts[i]) {
                    start = launch.starts[i];
                    size = launch.sizes[i];
                }
            typename Element::Real c[V], s[V];
            // Unrolled it would take registers, and with them threads that could wait for memory.
#pragma unroll 1
            for (whole head = first_head; head < last_head; ++head) {
                if (head == first_head || rows.table[2] != 0) {
                    whole at = table_row + head * rows.table[2] + pair;
                    load<V>(c, cos + at);
                    load<V>(s, sin + at);
                    if (launch.inverse)
                        for (int i = 0; i < V; ++i) s[i] = -s[i];
                }
                turn_pairs<Element, INTERLEAVED, V>(x_row + head * rows.x[2] + launch.lead,
                                                    y_row + head * rows.out[2] + launch.lead, c, s,
                                                    pair, start, size);
            }
        }
#pragma unroll 1
        for (whole i = threadIdx.x * V; i < launch.rest; i += blockDim.x * V)
#pragma unroll 1
            for (whole head = first_head; head < last_head; ++head) {
                typename Element::Bits same[V];
                load<V>(same, x_row + head * rows.x[2] + launch.rest_at + i);
                store<V>(y_row + head * rows.out[2] + launch.rest_at + i, same);
            }
    }
}

template <typename Element, bool INTERLEAVED, int V>
__device__ void rotate(const void* q, void* q_out, const void* k, void* k_out, const void* cos,
                       const void* sin, const Launch& launch) {
    typedef typename Element::Bits Bits;
    typedef typename Element::Real Real;
    // Along y an index is no more than 65535, and heads_each is such that this is enough.
    whole group = blockIdx.y;
    bool first = group < launch.q_groups;
    rotate_heads<Element, INTERLEAVED, V>(
        (const Bits*)(first ? q : k), (Bits*)(first ? q_out : k_out), (const Real*)cos,
        (const Real*)sin, first ? launch.q : launch.k, launch,
        (first ? group : group - launch.q_groups) * launch.heads_each);
}

#define KERNEL(DTYPE, ELEMENT, LAYOUT, INTERLEAVED, WIDTH, V)                                     \
    extern "C" __global__ void __launch_bounds__(256) rotate_##DTYPE##_##LAYOUT##_##WIDTH(         \
        const void* q, void* q_out, const void* k, void* k_out, const void* cos, const void* sin,  \
        const Launch launch) {                                                                     \
        rotate<ELEMENT, INTERLEAVED, V>(q, q_out, k, k_out, cos, sin, launch);                     \
    }

// One pair at a time, or as many as lie in 16 bytes.
#define KERNELS(DTYPE, ELEMENT, V)                       \
    KERNEL(DTYPE, ELEMENT, half, false, single, 1)       \
    KERNEL(DTYPE, ELEMENT, half, false, wide, V)         \
    KERNEL(DTYPE, ELEMENT, interleaved, true, single, 1) \
    KERNEL(DTYPE, ELEMENT, interleaved, true, wide, V)

KERNELS(float16, Float16, 8)
KERNELS(bfloat16, Bfloat16, 8)
KERNELS(float32, Itself<float>, 4)
KERNELS(float64, Itself<double>, 2)
